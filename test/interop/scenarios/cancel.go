package scenarios

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// CancelledCallFillsTheCache cancels a Decrypt that waits for Key4C (case 43 of kubernetes.md §7), as an API
// server does whose own client has gone. The call to Key4C goes on, for whoever asks next.
func CancelledCallFillsTheCache(t *testing.T) {
	const latency = 2 * time.Second // below what the plugin waits for one attempt
	forEachAPI(t, func(t *testing.T, api string) {
		emulator := startEmulator(t)
		plugin := startPlugin(t, emulator, time.Hour) // no probe but the first
		w, err := wireEncrypt(api, connect(t, plugin.socket, ""), dek(0))
		if err != nil {
			t.Fatal(err)
		}
		plugin.restart(t) // now Decrypt must ask Key4C
		c := connect(t, plugin.socket, "")
		if _, err := wireEncrypt(api, c, dek(1)); err != nil {
			t.Fatal(err)
		}
		emulator.delay(t, latency)
		before := emulator.calls(t)

		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		sent := c.sent.count()
		answered := make(chan error, 1)
		start := time.Now()
		go func() {
			_, err := wireDecryptUntil(ctx, api, c, w)
			answered <- err
		}()
		waitUntil(t, "the Decrypt to leave", func() error {
			if c.sent.count() == sent {
				return fmt.Errorf("nothing was sent")
			}
			return nil
		})
		// An answer to a later call of the same connection: the plugin has the Decrypt.
		if _, err := wireEncrypt(api, c, dek(2)); err != nil {
			t.Fatal(err)
		}
		cancel()
		if err := <-answered; status.Code(err) != codes.Canceled {
			t.Fatalf("cancelled Decrypt: %v, want Canceled", err)
		}
		if _, err := wireEncrypt(api, c, dek(3)); err != nil {
			t.Fatalf("Encrypt after the cancelled Decrypt: %v", err)
		}
		waitUntil(t, "the plugin to notice", func() error {
			log, err := os.ReadFile(plugin.log.Name())
			if err == nil && !bytes.Contains(log, []byte(`"kind":"cancelled"`)) {
				err = fmt.Errorf("nothing is cancelled")
			}
			return err
		})
		if took := time.Since(start); took >= latency {
			t.Fatalf("cancelled after %s, when Key4C had answered: this tests nothing", took)
		}
		if err := expectReset(c.sent.first()); err != nil {
			t.Fatal(err)
		}

		want := calls{Encrypt: before.Encrypt, Decrypt: before.Decrypt + 1}
		waitUntil(t, "Key4C to be called to the end", func() error {
			if now := emulator.calls(t); now.Decrypt != want.Decrypt {
				return fmt.Errorf("%+v", now)
			}
			return nil
		})
		plaintext, err := wireDecrypt(api, c, w)
		if err != nil || !bytes.Equal(plaintext, dek(0)) {
			t.Fatalf("Decrypt after the cancelled one: error %v, or another DEK than was encrypted", err)
		}
		expectCalls(t, emulator, want)
		if dials := c.dials.Load(); dials != 1 {
			t.Errorf("%d connections, want the first one to last", dials)
		}
	})
}

// expectReset fails unless RST_STREAM with CANCEL is in what a client sent.
func expectReset(sent []byte) error {
	frames := bytes.NewReader(bytes.TrimPrefix(sent, []byte(http2.ClientPreface)))
	framer := http2.NewFramer(nil, frames)
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return fmt.Errorf("no RST_STREAM in what was sent: %w", err)
		}
		if reset, ok := frame.(*http2.RSTStreamFrame); ok && reset.ErrCode == http2.ErrCodeCancel {
			return nil
		}
	}
}
