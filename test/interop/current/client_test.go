// Package current runs the scenarios with the client code of a current kube-apiserver.
package current

import (
	"context"
	"net/url"
	"time"

	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig/controller"
	utilfeature "k8s.io/apiserver/pkg/util/feature"

	"key4c-kms-plugin/test/interop/scenarios"
)

// apiServerID is only a label of metrics.
const apiServerID = "interop"

var client = scenarios.Client{
	StatusVersion: "v2",
	Authority:     url.PathEscape,
	Load: func(ctx context.Context, path string, reload bool) (*encryptionconfig.EncryptionConfiguration, error) {
		return encryptionconfig.LoadEncryptionConfig(ctx, path, reload, apiServerID)
	},
	Watch: func(ctx context.Context, path string, transformers *encryptionconfig.DynamicTransformers, contentHash string) {
		controller.NewDynamicEncryptionConfiguration("reload", path, transformers, contentHash, apiServerID).Run(ctx)
	},
}

func init() {
	// Off by default since 1.29, and still there for data of old.
	if err := utilfeature.DefaultMutableFeatureGate.Set("KMSv1=true"); err != nil {
		panic(err)
	}
	// A minute in production.
	controller.EncryptionConfigFileChangePollDuration = 100 * time.Millisecond
}
