// Package real puts the plugin, called by the API server's own gRPC clients, under upstream's in-process mocks.
package real

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/apiserver/pkg/storage/value/encrypt/envelope"
	v2 "k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2"
	kmsservice "k8s.io/kms/pkg/service"
	"key4c-kms-plugin/test/upstream/harness/mockv2"
)

type tb struct{ testing.TB }

func (tb) Helper()                   {}
func (tb) Name() string              { return "real" }
func (tb) Cleanup(func())            {} // the kernel ends the processes with this one
func (tb) Logf(string, ...any)       {}
func (tb) Fatal(a ...any)            { panic(fmt.Sprint(a...)) }
func (tb) Fatalf(f string, a ...any) { panic(fmt.Sprintf(f, a...)) }

type made struct {
	keyID       string
	annotations map[string][]byte
}

var (
	s1    v1.Service
	s2    kmsservice.Service
	known sync.Map
	start = sync.OnceFunc(func() {
		name := fmt.Sprintf("real-%d.sock", os.Getpid())
		p := mockv2.NewBase64Plugin(tb{}, name)
		var err error
		if s1, err = v1.NewGRPCService(context.Background(), "unix://"+p.Socket, 3*time.Second); err != nil {
			panic(err)
		}
		if s2, err = v2.NewGRPCService(context.Background(), "unix://"+p.Socket, "real", 3*time.Second); err != nil {
			panic(err)
		}
	})
)

func Encrypt1(data []byte) ([]byte, error) {
	start()
	return s1.Encrypt(data)
}

func Decrypt1(data []byte) ([]byte, error) {
	start()
	return s1.Decrypt(data)
}

// Encrypt gives the plugin's ciphertext and, unless the test wants its own, its annotations.
func Encrypt(ctx context.Context, uid string, data []byte, annotations map[string][]byte) ([]byte, map[string][]byte, error) {
	start()
	r, err := s2.Encrypt(ctx, uid, data)
	if err != nil {
		return nil, nil, err
	}
	known.Store(string(r.Ciphertext), made{r.KeyID, r.Annotations})
	if annotations == nil {
		annotations = r.Annotations
	}
	return r.Ciphertext, annotations, nil
}

// Decrypt translates the mock's key ID to the plugin's; what the mock wrote is still base64.
func Decrypt(ctx context.Context, uid string, r *kmsservice.DecryptRequest) ([]byte, error) {
	start()
	m, ok := known.Load(string(r.Ciphertext))
	if !ok {
		return base64.StdEncoding.DecodeString(string(r.Ciphertext))
	}
	annotations := r.Annotations
	own := false
	for name := range annotations {
		own = own || strings.HasSuffix(name, "key4c-kms-plugin.io")
	}
	if !own {
		annotations = m.(made).annotations
	}
	return s2.Decrypt(ctx, uid, &kmsservice.DecryptRequest{Ciphertext: r.Ciphertext, KeyID: m.(made).keyID, Annotations: annotations})
}

// Status asks the plugin whether it is ok; the key ID stays that of the test.
func Status(ctx context.Context) (*kmsservice.StatusResponse, error) {
	start()
	return s2.Status(ctx)
}
