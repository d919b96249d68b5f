// Package release128 runs the scenarios with the client code of kube-apiserver 1.28: the last release that
// sends the path of the socket as :authority, and one of the two that take no version but v2beta1.
package release128

import (
	"context"

	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig/controller"
	utilfeature "k8s.io/apiserver/pkg/util/feature"

	"key4c-kms-plugin/test/interop/scenarios"
)

var client = scenarios.Client{
	StatusVersion: "v2beta1",
	Authority:     func(socket string) string { return socket },
	Load:          encryptionconfig.LoadEncryptionConfig,
	Watch: func(ctx context.Context, path string, transformers *encryptionconfig.DynamicTransformers, contentHash string) {
		// 1.28 watches the file itself (fsnotify).
		controller.NewDynamicEncryptionConfiguration("reload", path, transformers, contentHash).Run(ctx)
	},
}

func init() {
	// Off by default in 1.28, the only way from 1.29 on: one seed for many DEKs.
	if err := utilfeature.DefaultMutableFeatureGate.Set("KMSv2KDF=true"); err != nil {
		panic(err)
	}
}
