// The kube-apiserver of the release pinned in go.mod, unchanged but for one interval.
package main

import (
	"os"
	"time"
	_ "time/tzdata"

	"k8s.io/apiserver/pkg/server/options/encryptionconfig/controller"
	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	// kube-apiserver reads its EncryptionConfiguration anew once a minute, and no flag changes that.
	// The migrations wait for it a dozen times: a second keeps the run short and changes nothing else.
	controller.EncryptionConfigFileChangePollDuration = time.Second
	os.Exit(cli.Run(app.NewAPIServerCommand()))
}
