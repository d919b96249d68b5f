// Command bench loads a KMS plugin with grpc-go, the client that kube-apiserver uses, and can stand in
// for a plugin itself: a grpc-go server with the same AES-256-GCM and nothing else, as a yardstick.
package main

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	kmsapi "k8s.io/kms/apis/v2"
)

func main() {
	socket := flag.String("socket", "", "path of the unix socket")
	serve := flag.Bool("serve", false, "be the reference server instead of a client")
	operation := flag.String("operation", "encrypt", "encrypt, decrypt or status")
	callers := flag.Int("callers", 1, "concurrent callers on one connection")
	duration := flag.Duration("duration", 3*time.Second, "how long to call")
	flag.Parse()
	if *serve {
		log.Fatal(runReference(*socket))
	}
	result, err := load(*socket, *operation, *callers, *duration)
	if err != nil {
		log.Fatal(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
		log.Fatal(err)
	}
}

// Result is one line of JSON: calls a second, and latencies in microseconds.
type Result struct {
	PerSecond float64 `json:"perSecond"`
	P50Micros float64 `json:"p50Micros"`
	P99Micros float64 `json:"p99Micros"`
	Errors    int     `json:"errors"`
}

func load(socket, operation string, callers int, duration time.Duration) (Result, error) {
	conn, err := grpc.NewClient("unix://"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
	if err != nil {
		return Result{}, err
	}
	defer conn.Close()
	client := kmsapi.NewKeyManagementServiceClient(conn)
	call, err := prepare(client, operation)
	if err != nil {
		return Result{}, err
	}
	// A warm-up of the same kind: the connection, the JIT and the caches are not what is measured.
	measure(call, callers, duration/3)
	latencies, errors, elapsed := measure(call, callers, duration)
	slices.Sort(latencies)
	at := func(part float64) float64 {
		return float64(latencies[int(part*float64(len(latencies)-1))].Nanoseconds()) / 1e3
	}
	return Result{
		PerSecond: float64(len(latencies)) / elapsed.Seconds(),
		P50Micros: at(0.50),
		P99Micros: at(0.99),
		Errors:    errors,
	}, nil
}

// prepare makes the call to repeat; decrypt repeats one ciphertext.
func prepare(client kmsapi.KeyManagementServiceClient, operation string) (func() error, error) {
	ctx := context.Background()
	dek := make([]byte, 32)
	if _, err := rand.Read(dek); err != nil {
		return nil, err
	}
	encrypt := &kmsapi.EncryptRequest{Plaintext: dek, Uid: "7b3f1a52-5d0e-4f6b-9f3a-0c6f2f1f9a11"}
	switch operation {
	case "status":
		return func() error { _, err := client.Status(ctx, &kmsapi.StatusRequest{}); return err }, nil
	case "encrypt":
		return func() error { _, err := client.Encrypt(ctx, encrypt); return err }, nil
	case "decrypt":
		wrapped, err := client.Encrypt(ctx, encrypt, grpc.WaitForReady(true))
		if err != nil {
			return nil, err
		}
		decrypt := &kmsapi.DecryptRequest{
			Ciphertext:  wrapped.Ciphertext,
			KeyId:       wrapped.KeyId,
			Annotations: wrapped.Annotations,
			Uid:         encrypt.Uid,
		}
		return func() error { _, err := client.Decrypt(ctx, decrypt); return err }, nil
	}
	return nil, fmt.Errorf("no operation %q", operation)
}

func measure(call func() error, callers int, duration time.Duration) ([]time.Duration, int, time.Duration) {
	var mutex sync.Mutex
	var all []time.Duration
	var errors int
	var group sync.WaitGroup
	start := time.Now()
	for range callers {
		group.Go(func() {
			var own []time.Duration
			failed := 0
			for time.Since(start) < duration {
				before := time.Now()
				if call() != nil {
					failed++
				}
				own = append(own, time.Since(before))
			}
			mutex.Lock()
			defer mutex.Unlock()
			all = append(all, own...)
			errors += failed
		})
	}
	group.Wait()
	return all, errors, time.Since(start)
}

// reference wraps with AES-256-GCM under a key in memory.
type reference struct {
	kmsapi.UnimplementedKeyManagementServiceServer
	aead cipher.AEAD
}

func runReference(socket string) error {
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	kmsapi.RegisterKeyManagementServiceServer(server, &reference{aead: aead})
	return server.Serve(listener)
}

func (r *reference) Status(context.Context, *kmsapi.StatusRequest) (*kmsapi.StatusResponse, error) {
	return &kmsapi.StatusResponse{Version: "v2", Healthz: "ok", KeyId: "reference"}, nil
}

func (r *reference) Encrypt(_ context.Context, in *kmsapi.EncryptRequest) (*kmsapi.EncryptResponse, error) {
	iv := make([]byte, r.aead.NonceSize())
	if _, err := rand.Read(iv); err != nil {
		return nil, err
	}
	return &kmsapi.EncryptResponse{Ciphertext: r.aead.Seal(iv, iv, in.Plaintext, nil), KeyId: "reference"}, nil
}

func (r *reference) Decrypt(_ context.Context, in *kmsapi.DecryptRequest) (*kmsapi.DecryptResponse, error) {
	size := r.aead.NonceSize()
	plaintext, err := r.aead.Open(nil, in.Ciphertext[:size], in.Ciphertext[size:], nil)
	return &kmsapi.DecryptResponse{Plaintext: plaintext}, err
}
