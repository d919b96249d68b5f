package scenarios

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/apimachinery/pkg/util/uuid"
	kmsv1 "k8s.io/kms/apis/v1beta1"
	kmsv2 "k8s.io/kms/apis/v2"
)

// apiServerTimeout is kube-apiserver's default for a call to the plugin.
const apiServerTimeout = 3 * time.Second

// callTimeout is ten times that: on a busy machine a call takes as long as the machine lets it.
const callTimeout = 10 * apiServerTimeout

// dekBytes is what kube-apiserver has wrapped: a DEK (v1) or the seed of DEKs (v2).
const dekBytes = 32

// connection is a plain gRPC connection with kube-apiserver's options.
type connection struct {
	*grpc.ClientConn
	dials atomic.Int32
	sent  recorder
}

// connect uses grpc.Dial, as kube-apiserver does: grpc.NewClient is unknown to the grpc-go of 1.28 and makes
// another :authority. An empty authority leaves it to this release.
func connect(t *testing.T, socket, authority string) *connection {
	t.Helper()
	c := &connection{}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
			if err != nil {
				return nil, err
			}
			c.dials.Add(1)
			return recordedConn{conn, &c.sent}, nil
		}),
	}
	if authority != "" {
		options = append(options, grpc.WithAuthority(authority))
	}
	var err error
	if c.ClientConn, err = grpc.Dial(socket, options...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// wrapped is what Encrypt answers; for v1 only the ciphertext.
type wrapped struct {
	ciphertext  []byte
	keyID       string
	annotations map[string][]byte
}

// wireEncrypt is one Encrypt call with kube-apiserver's timeout.
func wireEncrypt(api string, c *connection, plaintext []byte) (wrapped, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	if api == "v1" {
		answer, err := kmsv1.NewKeyManagementServiceClient(c.ClientConn).Encrypt(ctx,
			&kmsv1.EncryptRequest{Version: "v1beta1", Plain: plaintext})
		if err != nil {
			return wrapped{}, err
		}
		return wrapped{ciphertext: answer.Cipher}, nil
	}
	answer, err := kmsv2.NewKeyManagementServiceClient(c.ClientConn).Encrypt(ctx,
		&kmsv2.EncryptRequest{Plaintext: plaintext, Uid: string(uuid.NewUUID())})
	if err != nil {
		return wrapped{}, err
	}
	return wrapped{answer.Ciphertext, answer.KeyId, answer.Annotations}, nil
}

// wireDecrypt is one Decrypt call with kube-apiserver's timeout.
func wireDecrypt(api string, c *connection, w wrapped) ([]byte, error) {
	return wireDecryptUntil(context.Background(), api, c, w)
}

// wireDecryptUntil is one that the caller may cancel.
func wireDecryptUntil(ctx context.Context, api string, c *connection, w wrapped) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if api == "v1" {
		answer, err := kmsv1.NewKeyManagementServiceClient(c.ClientConn).Decrypt(ctx,
			&kmsv1.DecryptRequest{Version: "v1beta1", Cipher: w.ciphertext})
		if err != nil {
			return nil, err
		}
		return answer.Plain, nil
	}
	answer, err := kmsv2.NewKeyManagementServiceClient(c.ClientConn).Decrypt(ctx, &kmsv2.DecryptRequest{
		Ciphertext: w.ciphertext, Uid: string(uuid.NewUUID()), KeyId: w.keyID, Annotations: w.annotations,
	})
	if err != nil {
		return nil, err
	}
	return answer.Plaintext, nil
}

// wireVersion asks what kube-apiserver asks before all else: Version (v1) or Status (v2).
func wireVersion(api string, c *connection) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	if api == "v1" {
		answer, err := kmsv1.NewKeyManagementServiceClient(c.ClientConn).Version(ctx,
			&kmsv1.VersionRequest{Version: "v1beta1"})
		if err != nil {
			return "", err
		}
		return answer.Version, nil
	}
	answer, err := kmsv2.NewKeyManagementServiceClient(c.ClientConn).Status(ctx, &kmsv2.StatusRequest{})
	if err != nil {
		return "", err
	}
	if answer.Healthz != "ok" {
		return "", fmt.Errorf("healthz is %q", answer.Healthz)
	}
	return answer.Version, nil
}

// roundTrip encrypts, decrypts and compares.
func roundTrip(api string, c *connection, plaintext []byte) error {
	w, err := wireEncrypt(api, c, plaintext)
	if err != nil {
		return err
	}
	again, err := wireDecrypt(api, c, w)
	if err != nil {
		return err
	}
	if !bytes.Equal(again, plaintext) {
		return fmt.Errorf("got other bytes than were encrypted")
	}
	return nil
}

// dek is a DEK that no other i has.
func dek(i int) []byte {
	return fmt.Appendf(nil, "%0*d", dekBytes, i)
}

// recorder keeps the first bytes that a client sends, to prove what was tested, and counts them all.
type recorder struct {
	mutex sync.Mutex
	bytes []byte
	total int
}

const maxRecordedBytes = 4096

func (r *recorder) add(p []byte) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.total += len(p)
	r.bytes = append(r.bytes, p[:min(len(p), maxRecordedBytes-len(r.bytes))]...)
}

func (r *recorder) first() []byte {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	return bytes.Clone(r.bytes)
}

func (r *recorder) count() int {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	return r.total
}

type recordedConn struct {
	net.Conn
	sent *recorder
}

func (c recordedConn) Write(p []byte) (int, error) {
	c.sent.add(p)
	return c.Conn.Write(p)
}
