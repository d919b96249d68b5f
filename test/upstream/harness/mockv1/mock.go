// Package mockv1 has the API of k8s.io/apiserver/pkg/storage/value/encrypt/envelope/testing/v1beta1.
package mockv1

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"k8s.io/apimachinery/pkg/util/wait"
	kmsapi "k8s.io/kms/apis/v1beta1"
	"key4c-kms-plugin/test/upstream/harness/plug"
)

type Base64Plugin struct {
	*plug.Plugin
	client kmsapi.KeyManagementServiceClient
}

func NewBase64Plugin(t *testing.T, socketPath string) *Base64Plugin {
	p := &Base64Plugin{Plugin: plug.Start(t, socketPath)}
	conn, err := grpc.Dial("unix://"+p.Direct, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	p.client = kmsapi.NewKeyManagementServiceClient(conn)
	t.Cleanup(func() { _ = conn.Close() })
	var last error
	if err := wait.PollImmediate(50*time.Millisecond, wait.ForeverTestTimeout, func() (bool, error) {
		_, last = p.client.Encrypt(context.Background(), &kmsapi.EncryptRequest{Version: "v1beta1", Plain: []byte("foo")}, grpc.WaitForReady(true))
		return last == nil, nil
	}); err != nil {
		t.Fatalf("plugin not up: %v, %v", err, last)
	}
	return p
}

func (p *Base64Plugin) SetVersion(ver string) { panic("the plugin has one version") }

func (p *Base64Plugin) LastEncryptRequest() []byte {
	r := &kmsapi.EncryptRequest{}
	p.Last("Encrypt", r)
	return r.Plain
}

func (p *Base64Plugin) Decrypt(ctx context.Context, r *kmsapi.DecryptRequest) (*kmsapi.DecryptResponse, error) {
	return p.client.Decrypt(ctx, r)
}

// Cipher is what this plugin makes of a DEK: the mock's would be its base64.
func (p *Base64Plugin) Cipher(dek []byte) []byte {
	r, err := p.client.Encrypt(context.Background(), &kmsapi.EncryptRequest{Version: "v1beta1", Plain: dek})
	if err != nil {
		panic(err)
	}
	return r.Cipher
}
