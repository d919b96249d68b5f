// Package mockv2 has the API of k8s.io/apiserver/pkg/storage/value/encrypt/envelope/testing/v2.
package mockv2

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"k8s.io/apimachinery/pkg/util/wait"
	kmsapi "k8s.io/kms/apis/v2"
	"key4c-kms-plugin/test/upstream/harness/plug"
)

type Base64Plugin struct {
	*plug.Plugin
	client kmsapi.KeyManagementServiceClient
}

// What the plugin tells that was started last. All of a test have one key, and so one key_id.
var (
	latest    *Base64Plugin
	keyPrefix string // of key_id, without the version
)

// KeyID is the plugin's where the mock has "1", or "2" after UpdateKeyID.
func KeyID(version int) string { return fmt.Sprintf("%s.v%d", keyPrefix, version) }

// KeyIDHash is the form of it in metrics and errors.
func KeyIDHash(version int) string {
	return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(KeyID(version))))
}

func NewBase64Plugin(t testing.TB, socketPath string) *Base64Plugin {
	p := &Base64Plugin{Plugin: plug.Start(t, socketPath)}
	conn, err := grpc.Dial("unix://"+p.Direct, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	p.client = kmsapi.NewKeyManagementServiceClient(conn)
	t.Cleanup(func() { _ = conn.Close() })
	var last error
	if err := wait.PollImmediate(50*time.Millisecond, wait.ForeverTestTimeout, func() (bool, error) {
		r, err := p.client.Status(context.Background(), &kmsapi.StatusRequest{}, grpc.WaitForReady(true))
		last = err
		if err == nil {
			keyPrefix = strings.Split(r.KeyId, ".v")[0]
		}
		return err == nil && r.Healthz == "ok", nil
	}); err != nil {
		t.Fatalf("plugin not up: %v, %v", err, last)
	}
	latest = p
	return p
}

func WaitForBase64PluginToBeUpdated(p *Base64Plugin) error {
	return wait.PollImmediate(time.Second, wait.ForeverTestTimeout, func() (bool, error) {
		r, err := p.client.Status(context.Background(), &kmsapi.StatusRequest{})
		return err == nil && r.Healthz == "ok" && r.KeyId == KeyID(2), nil
	})
}

func (p *Base64Plugin) UpdateKeyID() { p.Control("rotate") }

func (p *Base64Plugin) LastEncryptRequest() []byte {
	r := &kmsapi.EncryptRequest{}
	p.Last("Encrypt", r)
	return r.Plaintext
}

// Decrypt adds what the mock does not want and every API server sends: key_id and annotations.
func (p *Base64Plugin) Decrypt(ctx context.Context, r *kmsapi.DecryptRequest) (*kmsapi.DecryptResponse, error) {
	for _, c := range p.Calls("Encrypt") {
		e := &kmsapi.EncryptResponse{}
		if err := plug.Unmarshal(c.Response, e); err != nil {
			return nil, err
		}
		if string(e.Ciphertext) == string(r.Ciphertext) {
			r.KeyId, r.Annotations = e.KeyId, e.Annotations
		}
	}
	return p.client.Decrypt(ctx, r)
}
