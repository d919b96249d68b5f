// Command soak calls a KMS plugin with grpc-go for a long time, over connections that come and go, and
// verifies every answer. It prints one line of JSON with its totals every few seconds, and ends with
// status 1 when any RPC failed or gave a wrong answer.
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"flag"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"os"
	"regexp"
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
	callTimeout    = 3 * time.Second // kube-apiserver's default
	reportInterval = 5 * time.Second
	maxSamples     = 20_000 // ciphertexts kept to be decrypted again later
	maxErrorsShown = 20
)

var keyID = regexp.MustCompile(`^k4c-[a-z2-7]{26}\.v([1-9][0-9]*)$`)

// A sample is a DEK and what either API made of it.
type sample struct {
	dek    []byte
	cipher []byte              // v1
	v2     *v2.EncryptResponse // nil for v1
}

type soak struct {
	socket string
	pace   chan struct{}
	end    time.Time

	rpcs, errors, connections, cut atomic.Int64

	mutex   sync.Mutex
	samples []sample
	seen    int
}

func main() {
	socket := flag.String("socket", "", "path of the unix socket")
	duration := flag.Duration("duration", time.Minute, "how long to call")
	connections := flag.Int("connections", 4, "connections at once")
	callers := flag.Int("callers", 8, "concurrent callers on each connection")
	rate := flag.Int("rate", 6_000, "RPCs a second, at most")
	flag.Parse()
	s := &soak{socket: *socket, pace: make(chan struct{}, *rate), end: time.Now().Add(*duration)}
	go s.keepPace(*rate)
	go s.reportFromTimeToTime()
	var group sync.WaitGroup
	for range *connections {
		group.Go(func() {
			for time.Now().Before(s.end) {
				s.useConnection(*callers)
			}
		})
	}
	group.Go(s.cutConnections)
	group.Wait()
	s.decryptAll()
	s.report()
	if s.errors.Load() > 0 {
		os.Exit(1)
	}
}

// keepPace lets so many RPCs begin in a second; what a slow second left over may be made up in the next.
func (s *soak) keepPace(rate int) {
	const ticks = 100
	for range time.Tick(time.Second / ticks) {
		for range rate / ticks {
			select {
			case s.pace <- struct{}{}:
			default:
			}
		}
	}
}

func (s *soak) dial() *grpc.ClientConn {
	s.connections.Add(1)
	conn, err := grpc.NewClient("unix://"+s.socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
	if err != nil {
		panic(err) // the address does not parse
	}
	return conn
}

// useConnection lets callers work on one connection for some seconds and closes it when they are done.
func (s *soak) useConnection(callers int) {
	conn := s.dial()
	defer conn.Close()
	until := time.Now().Add(time.Second + mathrand.N(9*time.Second))
	if until.After(s.end) {
		until = s.end
	}
	var group sync.WaitGroup
	for range callers {
		group.Go(func() {
			c := caller{soak: s, v1: v1.NewKeyManagementServiceClient(conn), v2: v2.NewKeyManagementServiceClient(conn)}
			for time.Now().Before(until) {
				c.round()
			}
		})
	}
	group.Wait()
}

// cutConnections is the neighbour that breaks off: connections closed under calls in progress, and some
// that never speak. Their calls are no RPCs of the count.
func (s *soak) cutConnections() {
	for time.Now().Before(s.end) {
		time.Sleep(mathrand.N(400 * time.Millisecond))
		s.cut.Add(1)
		if mathrand.N(4) == 0 {
			if conn, err := net.Dial("unix", s.socket); err == nil {
				time.Sleep(mathrand.N(100 * time.Millisecond))
				conn.Close()
			}
			continue
		}
		conn := s.dial()
		client := v2.NewKeyManagementServiceClient(conn)
		for range 8 {
			go client.Encrypt(context.Background(), &v2.EncryptRequest{Plaintext: newDEK(), Uid: "cut"})
		}
		time.Sleep(mathrand.N(5 * time.Millisecond))
		conn.Close()
	}
}

// A caller remembers the newest version of the key that it was told: it must never go back.
type caller struct {
	soak    *soak
	v1      v1.KeyManagementServiceClient
	v2      v2.KeyManagementServiceClient
	version int
}

// round is both APIs there and back, a sample of the past, and Status.
func (c *caller) round() {
	dek := newDEK()
	var cipher *v1.EncryptResponse
	c.call("v1 Encrypt", func(ctx context.Context) (err error) {
		cipher, err = c.v1.Encrypt(ctx, &v1.EncryptRequest{Version: "v1beta1", Plain: dek})
		return err
	})
	if cipher != nil {
		one := sample{dek: dek, cipher: cipher.Cipher}
		c.decrypt(one)
		c.soak.keep(one)
	}
	var wrapped *v2.EncryptResponse
	c.call("v2 Encrypt", func(ctx context.Context) (err error) {
		if wrapped, err = c.v2.Encrypt(ctx, &v2.EncryptRequest{Plaintext: dek, Uid: newUID()}); err != nil {
			return err
		}
		return c.seeVersion(wrapped.KeyId)
	})
	if wrapped != nil {
		one := sample{dek: dek, v2: wrapped}
		c.decrypt(one)
		c.soak.keep(one)
	}
	if old, ok := c.soak.anySample(); ok {
		c.decrypt(old)
	}
	c.call("v2 Status", func(ctx context.Context) error {
		status, err := c.v2.Status(ctx, &v2.StatusRequest{})
		if err != nil {
			return err
		}
		if status.Healthz != "ok" || status.Version != "v2" {
			return fmt.Errorf("answered %q, %q", status.Healthz, status.Version)
		}
		return c.seeVersion(status.KeyId)
	})
}

func (c *caller) seeVersion(id string) error {
	match := keyID.FindStringSubmatch(id)
	if match == nil {
		return fmt.Errorf("key_id %q", id)
	}
	version, err := strconv.Atoi(match[1])
	if err != nil || version < c.version {
		return fmt.Errorf("key_id %q after version %d", id, c.version)
	}
	c.version = version
	return nil
}

func (c *caller) decrypt(one sample) {
	c.call("Decrypt", func(ctx context.Context) error {
		var dek []byte
		if one.v2 == nil {
			answer, err := c.v1.Decrypt(ctx, &v1.DecryptRequest{Version: "v1beta1", Cipher: one.cipher})
			if err != nil {
				return fmt.Errorf("v1: %w", err)
			}
			dek = answer.Plain
		} else {
			answer, err := c.v2.Decrypt(ctx, &v2.DecryptRequest{
				Ciphertext: one.v2.Ciphertext, KeyId: one.v2.KeyId, Annotations: one.v2.Annotations, Uid: newUID(),
			})
			if err != nil {
				return fmt.Errorf("v2: %w", err)
			}
			dek = answer.Plaintext
		}
		if !bytes.Equal(dek, one.dek) {
			return fmt.Errorf("gave another DEK back")
		}
		return nil
	})
}

// call makes one RPC when its turn comes, with the deadline of kube-apiserver.
func (c *caller) call(name string, rpc func(context.Context) error) {
	<-c.soak.pace
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	err := rpc(ctx)
	c.soak.rpcs.Add(1)
	if err != nil && c.soak.errors.Add(1) <= maxErrorsShown {
		fmt.Fprintf(os.Stderr, "%s %s: %v\n", time.Now().UTC().Format(time.RFC3339Nano), name, err)
	}
}

// keep keeps a uniform choice of all samples so far (reservoir sampling), so that old ones stay among them.
func (s *soak) keep(one sample) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.seen++
	if len(s.samples) < maxSamples {
		s.samples = append(s.samples, one)
	} else if at := mathrand.N(s.seen); at < maxSamples {
		s.samples[at] = one
	}
}

func (s *soak) anySample() (sample, bool) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if len(s.samples) == 0 {
		return sample{}, false
	}
	return s.samples[mathrand.N(len(s.samples))], true
}

// decryptAll decrypts every sample once more, whatever was rotated or restarted since.
func (s *soak) decryptAll() {
	conn := s.dial()
	defer conn.Close()
	c := caller{soak: s, v1: v1.NewKeyManagementServiceClient(conn), v2: v2.NewKeyManagementServiceClient(conn)}
	for _, one := range s.samples {
		c.decrypt(one)
	}
}

func (s *soak) reportFromTimeToTime() {
	for range time.Tick(reportInterval) {
		s.report()
	}
}

func (s *soak) report() {
	json.NewEncoder(os.Stdout).Encode(map[string]int64{
		"rpcs": s.rpcs.Load(), "errors": s.errors.Load(),
		"connections": s.connections.Load(), "cut": s.cut.Load(),
	})
}

func newDEK() []byte { return random(32) }

func newUID() string { return fmt.Sprintf("%x", random(16)) }

func random(size int) []byte {
	bytes := make([]byte, size)
	rand.Read(bytes) // never fails
	return bytes
}
