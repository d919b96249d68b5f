// Command callers calls every method of a KMS plugin as kube-apiserver does: each caller on a connection of its own that
// waits for the server, three seconds a call. It verifies every answer, and prints one line of JSON when its time is over
// or its standard input ends.
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	v1 "k8s.io/kms/apis/v1beta1"
	v2 "k8s.io/kms/apis/v2"
)

const (
	callTimeout      = 3 * time.Second // kube-apiserver's default
	maxFailuresShown = 20
)

type totals struct {
	mutex    sync.Mutex
	lastGood time.Time

	Calls  int `json:"calls"`
	Failed int `json:"failed"`
	// The longest time in which no call of any caller succeeded.
	LongestGapMs int64    `json:"longestGapMs"`
	Failures     []string `json:"failures"`
}

func main() {
	socket := flag.String("socket", "", "path of the unix socket")
	duration := flag.Duration("duration", time.Minute, "how long to call, at most")
	callers := flag.Int("callers", 4, "callers of each API")
	pause := flag.Duration("pause", 20*time.Millisecond, "between the rounds of a caller")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), *duration)
	defer cancel()
	go func() {
		os.Stdin.Read(make([]byte, 1))
		cancel()
	}()
	t := &totals{lastGood: time.Now(), Failures: []string{}}
	var group sync.WaitGroup
	for range *callers {
		for _, round := range []func(*grpc.ClientConn, *totals){roundV1, roundV2} {
			group.Go(func() {
				conn := dial(*socket)
				defer conn.Close()
				for ctx.Err() == nil {
					round(conn, t)
					time.Sleep(*pause)
				}
			})
		}
	}
	group.Wait()
	t.LongestGapMs = max(t.LongestGapMs, time.Since(t.lastGood).Milliseconds())
	json.NewEncoder(os.Stdout).Encode(t)
}

func dial(socket string) *grpc.ClientConn {
	conn, err := grpc.NewClient("passthrough:///localhost",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}))
	if err != nil {
		panic(err) // the address does not parse
	}
	return conn
}

func roundV1(conn *grpc.ClientConn, t *totals) {
	client := v1.NewKeyManagementServiceClient(conn)
	t.call("v1 Version", func(ctx context.Context) error {
		_, err := client.Version(ctx, &v1.VersionRequest{Version: "v1beta1"})
		return err
	})
	dek := newDEK()
	var encrypted *v1.EncryptResponse
	if !t.call("v1 Encrypt", func(ctx context.Context) (err error) {
		encrypted, err = client.Encrypt(ctx, &v1.EncryptRequest{Version: "v1beta1", Plain: dek})
		return err
	}) {
		return
	}
	t.call("v1 Decrypt", func(ctx context.Context) error {
		decrypted, err := client.Decrypt(ctx, &v1.DecryptRequest{Version: "v1beta1", Cipher: encrypted.Cipher})
		return verified(dek, decrypted.GetPlain(), err)
	})
}

func roundV2(conn *grpc.ClientConn, t *totals) {
	client := v2.NewKeyManagementServiceClient(conn)
	t.call("v2 Status", func(ctx context.Context) error {
		status, err := client.Status(ctx, &v2.StatusRequest{})
		if err == nil && status.Healthz != "ok" {
			return fmt.Errorf("healthz is %q", status.Healthz)
		}
		return err
	})
	dek := newDEK()
	const uid = "7b3f1a52-5d0e-4f6b-9f3a-0c6f2f1f9a11"
	var encrypted *v2.EncryptResponse
	if !t.call("v2 Encrypt", func(ctx context.Context) (err error) {
		encrypted, err = client.Encrypt(ctx, &v2.EncryptRequest{Plaintext: dek, Uid: uid})
		return err
	}) {
		return
	}
	t.call("v2 Decrypt", func(ctx context.Context) error {
		decrypted, err := client.Decrypt(ctx, &v2.DecryptRequest{
			Ciphertext: encrypted.Ciphertext, KeyId: encrypted.KeyId, Annotations: encrypted.Annotations, Uid: uid,
		})
		return verified(dek, decrypted.GetPlaintext(), err)
	})
}

func newDEK() []byte {
	dek := make([]byte, 32)
	rand.Read(dek)
	return dek
}

func verified(dek, decrypted []byte, err error) error {
	if err == nil && !bytes.Equal(dek, decrypted) {
		return fmt.Errorf("not the bytes that were encrypted")
	}
	return err
}

func (t *totals) call(method string, run func(context.Context) error) bool {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	start := time.Now()
	err := run(ctx)
	end := time.Now()
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.Calls++
	if err != nil {
		t.Failed++
		if len(t.Failures) < maxFailuresShown {
			t.Failures = append(t.Failures, fmt.Sprintf("%s %s after %v: %v", end.Format("15:04:05.000"), method, end.Sub(start).Round(time.Millisecond), err))
		}
		return false
	}
	t.LongestGapMs = max(t.LongestGapMs, end.Sub(t.lastGood).Milliseconds())
	t.lastGood = end
	return true
}
