package scenarios

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
)

// ReloadTurnsEncryptionOn changes the encryption configuration from plaintext to the plugin under a running
// API server with --encryption-provider-config-automatic-reload.
func ReloadTurnsEncryptionOn(t *testing.T, client Client) {
	forEachAPI(t, func(t *testing.T, api string) {
		plugin := startPlugin(t, startEmulator(t), probeInterval)
		path := filepath.Join(t.TempDir(), "encryption.yaml")
		writeConfig(t, path, identityOnly)

		ctx, cancel := context.WithCancel(context.Background())
		t.Cleanup(cancel)
		first, closeFirst := context.WithCancel(ctx)
		config, err := client.Load(first, path, true)
		if err != nil {
			t.Fatalf("LoadEncryptionConfig: %v", err)
		}
		// From here on as EtcdOptions.ApplyTo does it.
		transformers := encryptionconfig.NewDynamicTransformers(
			config.Transformers, config.HealthChecks[0], closeFirst, config.KMSCloseGracePeriod)
		go client.Watch(ctx, path, transformers, config.EncryptionFileContentHash)
		server := transformers.TransformerForResource(secrets)

		plain := newObject("written-before")
		if err := plain.write(server); err != nil {
			t.Fatal(err)
		}
		if string(plain.stored) != string(plain.plain) {
			t.Fatalf("stored as %.40q before encryption is on", plain.stored)
		}

		load := startLoad(t, loadPause, func(caller, turn int) error {
			o := newObject(fmt.Sprintf("during-%d-%d", caller, turn))
			if err := o.write(server); err != nil {
				return err
			}
			if _, err := o.read(server); err != nil {
				return err
			}
			_, err := plain.read(server)
			return err
		})
		load.progress(t, callerCount)
		writeConfig(t, path, kmsThenIdentity(t, api, plugin.endpoint()))
		waitUntil(t, "writes to come out encrypted", func() error {
			o := newObject("written-after")
			if err := o.write(server); err != nil {
				return err
			}
			return expectEncrypted(api, o)
		})
		load.progress(t, 10*callerCount)
		load.stop()
		load.expectNoFailure(t, "writes and reads during the reload")

		stale, err := plain.read(server)
		if err != nil || !stale {
			t.Fatalf("plaintext from before: stale %t, error %v; want it stale and readable", stale, err)
		}
		if err := (&apiServer{healthChecks: config.HealthChecks}).checkHealth(); err != nil {
			t.Fatalf("health check of before the reload: %v", err)
		}
	})
}
