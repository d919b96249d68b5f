// Command driver measures what the loader does not: from exec to the first ok Status, and the v1 Secrets of an API server.
//
//	driver ready SOCKET COMMAND ARGUMENT…   milliseconds; the process is killed then
//	driver seal SOCKET FILE COUNT           has so many DEKs wrapped with v1
//	driver read SOCKET FILE CALLERS         seconds; every DEK is compared
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	v1 "k8s.io/kms/apis/v1beta1"
	v2 "k8s.io/kms/apis/v2"
)

const (
	pollInterval = 300 * time.Microsecond
	startLimit   = 30 * time.Second
	callTimeout  = 10 * time.Second
	sealers      = 16
	dekBytes     = 32
)

// secret is what etcd has of one, and what must come back.
type secret struct {
	DEK    []byte `json:"dek"`
	Cipher []byte `json:"cipher"`
}

func main() {
	if len(os.Args) < 4 {
		log.Fatal("ready, seal or read, and their arguments")
	}
	result, err := run(os.Args[1], os.Args[2], os.Args[3:])
	if err != nil {
		log.Fatal(err)
	}
	json.NewEncoder(os.Stdout).Encode(result)
}

func run(what, socket string, rest []string) (float64, error) {
	if what == "ready" {
		took, err := ready(socket, rest)
		return took.Seconds() * 1e3, err
	}
	if len(rest) != 2 {
		return 0, fmt.Errorf("%s takes a file and a number", what)
	}
	number, err := strconv.Atoi(rest[1])
	if err != nil {
		return 0, err
	}
	if what == "seal" {
		return float64(number), seal(socket, rest[0], number)
	}
	took, err := read(socket, rest[0], number)
	return took.Seconds(), err
}

func ready(socket string, command []string) (time.Duration, error) {
	child := exec.Command(command[0], command[1:]...)
	start := time.Now()
	if err := child.Start(); err != nil {
		return 0, err
	}
	defer func() {
		child.Process.Kill()
		child.Wait()
	}()
	conn, err := dial(socket)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	client := v2.NewKeyManagementServiceClient(conn)
	for time.Since(start) < startLimit {
		// grpc-go would wait a second before it tries to connect again.
		if probe, err := net.Dial("unix", socket); err == nil {
			probe.Close()
			ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
			status, err := client.Status(ctx, &v2.StatusRequest{}, grpc.WaitForReady(true))
			cancel()
			if err == nil && status.Healthz == "ok" {
				return time.Since(start), nil
			}
		}
		time.Sleep(pollInterval)
	}
	return 0, fmt.Errorf("%s is not ready after %v", command[0], startLimit)
}

func seal(socket, file string, count int) error {
	secrets := make([]secret, count)
	_, err := each(socket, count, sealers, func(ctx context.Context, client v1.KeyManagementServiceClient, at int) error {
		dek := make([]byte, dekBytes)
		rand.Read(dek)
		answer, err := client.Encrypt(ctx, &v1.EncryptRequest{Version: "v1beta1", Plain: dek})
		secrets[at] = secret{DEK: dek, Cipher: answer.GetCipher()}
		return err
	})
	if err != nil {
		return err
	}
	text, err := json.Marshal(secrets)
	if err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o600)
}

func read(socket, file string, callers int) (time.Duration, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	var secrets []secret
	if err := json.Unmarshal(text, &secrets); err != nil {
		return 0, err
	}
	return each(socket, len(secrets), callers, func(ctx context.Context, client v1.KeyManagementServiceClient, at int) error {
		one := secrets[at]
		answer, err := client.Decrypt(ctx, &v1.DecryptRequest{Version: "v1beta1", Cipher: one.Cipher})
		if err == nil && !bytes.Equal(answer.Plain, one.DEK) {
			return fmt.Errorf("secret %d is not what was encrypted", at)
		}
		return err
	})
}

// each has so many callers do the work on one connection, which is made before the clock starts.
func each(socket string, count, callers int, work func(context.Context, v1.KeyManagementServiceClient, int) error) (time.Duration, error) {
	conn, err := dial(socket)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	client := v1.NewKeyManagementServiceClient(conn)
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	if _, err := client.Version(ctx, &v1.VersionRequest{Version: "v1beta1"}, grpc.WaitForReady(true)); err != nil {
		return 0, err
	}
	start := time.Now()
	var next atomic.Int64
	var group sync.WaitGroup
	failures := make(chan error, callers)
	for range callers {
		group.Go(func() {
			for at := int(next.Add(1)) - 1; at < count; at = int(next.Add(1)) - 1 {
				ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
				err := work(ctx, client, at)
				cancel()
				if err != nil {
					failures <- err
					return
				}
			}
		})
	}
	group.Wait()
	took := time.Since(start)
	select {
	case err := <-failures:
		return 0, err
	default:
		return took, nil
	}
}

func dial(socket string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///localhost",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}))
}
