// Package scenarios drives the compiled plugin the way kube-apiserver does. It is written once, against
// what the releases have in common, and compiled against each release by the modules beside it.
package scenarios

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/server/healthz"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	"k8s.io/apiserver/pkg/storage/value"
)

// Client is one release of kube-apiserver: only what its releases do not have in common.
type Client struct {
	// StatusVersion is what Status must answer to the grpc-go of this release.
	StatusVersion string
	// Authority is what the grpc-go of this release makes of the path of the socket, unless it is told.
	Authority func(socket string) string
	// Load is encryptionconfig.LoadEncryptionConfig.
	Load func(ctx context.Context, path string, reload bool) (*encryptionconfig.EncryptionConfiguration, error)
	// Watch runs the controller that reloads the file at path, until ctx ends.
	Watch func(ctx context.Context, path string, transformers *encryptionconfig.DynamicTransformers, contentHash string)
}

// providerName is the name of the kms provider in every encryption configuration here.
const providerName = "key4c"

var secrets = schema.GroupResource{Resource: "secrets"}

// forEachAPI runs a scenario once for KMS v1 and once for KMS v2.
func forEachAPI(t *testing.T, scenario func(t *testing.T, api string)) {
	for _, api := range []string{"v1", "v2"} {
		t.Run("KMS_"+api, func(t *testing.T) { scenario(t, api) })
	}
}

// storagePrefix is what kube-apiserver puts before everything that the provider has encrypted.
func storagePrefix(api string) string {
	return "k8s:enc:kms:" + api + ":" + providerName + ":"
}

// identityOnly is an encryption configuration that stores plaintext.
const identityOnly = `apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers:
  - identity: {}
`

// kmsThenIdentity is the encryption configuration that the binary prints: it encrypts with the plugin and still
// reads plaintext. Its timeout is kube-apiserver's default.
func kmsThenIdentity(t *testing.T, api, endpoint string) string {
	t.Helper()
	command := exec.Command(pluginBinary(t), "manifest", "encryption-configuration",
		"--api", api, "--endpoint", endpoint, "--provider-name", providerName)
	command.Env = []string{noConfigFile} // not ours
	text, err := command.Output()
	if err != nil {
		t.Fatalf("manifest encryption-configuration: %v", err)
	}
	return string(text)
}

// writeConfig replaces the file in one step, as an operator should: a half-written one is never seen.
func writeConfig(t *testing.T, path, text string) {
	t.Helper()
	temporary := path + ".new"
	if err := os.WriteFile(temporary, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(temporary, path); err != nil {
		t.Fatal(err)
	}
}

// apiServer is the part of one kube-apiserver process that deals with encryption at rest.
type apiServer struct {
	secrets      value.Transformer
	healthChecks []healthz.HealthChecker
}

// startAPIServer loads a configuration with the plugin as kube-apiserver does when it starts.
func startAPIServer(t *testing.T, client Client, api string, plugin *plugin) *apiServer {
	t.Helper()
	path := filepath.Join(t.TempDir(), "encryption.yaml")
	writeConfig(t, path, kmsThenIdentity(t, api, plugin.endpoint()))
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	config, err := client.Load(ctx, path, false)
	if err != nil {
		t.Fatalf("LoadEncryptionConfig: %v", err)
	}
	return &apiServer{secrets: config.Transformers[secrets], healthChecks: config.HealthChecks}
}

// checkHealth asks every health check once, as /readyz does.
func (a *apiServer) checkHealth() error {
	var failures []string
	for _, check := range a.healthChecks {
		request := httptest.NewRequest(http.MethodGet, "/readyz/"+check.Name(), nil)
		if err := check.Check(request); err != nil {
			failures = append(failures, check.Name()+": "+err.Error())
		}
	}
	if len(failures) > 0 {
		return fmt.Errorf("%s", strings.Join(failures, "; "))
	}
	return nil
}

// expectHealthy fails unless the configuration has exactly this health check and it passes.
func (a *apiServer) expectHealthy(t *testing.T, api string) {
	t.Helper()
	want := map[string]string{"v1": "kms-provider-0", "v2": "kms-providers"}[api]
	if len(a.healthChecks) != 1 || a.healthChecks[0].Name() != want {
		t.Fatalf("health checks %v, want only %s", a.healthChecks, want)
	}
	if err := a.checkHealth(); err != nil {
		t.Fatalf("health check failed: %v", err)
	}
}

// object is one secret: what the API server has in memory, and what it has in etcd.
type object struct {
	name   string
	plain  []byte
	stored []byte
}

func newObject(name string) *object {
	return &object{name: name, plain: []byte(`{"kind":"Secret","data":{"password":"` + name + `"}}`)}
}

// storageContext is the authenticated data that kube-apiserver binds the ciphertext to.
func (o *object) storageContext() value.Context {
	return value.DefaultContext("/registry/secrets/default/" + o.name)
}

func (o *object) write(to value.Transformer) error {
	stored, err := to.TransformToStorage(context.Background(), o.plain, o.storageContext())
	if err != nil {
		return fmt.Errorf("write %s: %w", o.name, err)
	}
	o.stored = stored
	return nil
}

// read fails unless the stored object decrypts to what was written. Stale means that the API server would
// write it anew.
func (o *object) read(from value.Transformer) (stale bool, err error) {
	plain, stale, err := from.TransformFromStorage(context.Background(), o.stored, o.storageContext())
	if err != nil {
		return false, fmt.Errorf("read %s: %w", o.name, err)
	}
	if string(plain) != string(o.plain) {
		return false, fmt.Errorf("read %s: got other bytes than were written", o.name)
	}
	return stale, nil
}
