package scenarios

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
)

// MessagesInAnyFramesAreServed cuts messages into DATA frames, and frames into writes, as no grpc-go does
// (case 10 of kubernetes.md §7).
func MessagesInAnyFramesAreServed(t *testing.T) {
	plugin := startPlugin(t, startEmulator(t), probeInterval)

	for _, bytewise := range []bool{false, true} {
		t.Run(fmt.Sprintf("byte_a_frame/bytewise_%t", bytewise), func(t *testing.T) {
			c := dialRaw(t, plugin.socket)
			stream := c.open(callFields(v1Service+"Version"), framing{})
			for _, b := range grpcMessage(versionRequest) {
				c.data(stream, false, []byte{b})
			}
			c.data(stream, true, nil)
			if err := c.flush(bytewise); err != nil {
				t.Fatal(err)
			}
			c.expectAnswer(t, stream, codes.OK)
		})

		// Each has an answer of its own, so that a piece in the wrong stream shows.
		t.Run(fmt.Sprintf("many_streams/bytewise_%t", bytewise), func(t *testing.T) {
			const streamCount, pieceBytes = 20, 7
			encrypting := connect(t, plugin.socket, "")
			c := dialRaw(t, plugin.socket)
			var streams []uint32
			var pieces [][][]byte
			for i := range streamCount {
				w, err := wireEncrypt("v1", encrypting, dek(i))
				if err != nil {
					t.Fatal(err)
				}
				streams = append(streams, c.open(callFields(v1Service+"Decrypt"), framing{}))
				message := grpcMessage(v1Request(w.ciphertext))
				pieces = append(pieces, slices.Collect(slices.Chunk(message, pieceBytes)))
			}
			for turn := range pieces[0] {
				for i, stream := range streams {
					c.data(stream, turn == len(pieces[i])-1, pieces[i][turn])
				}
			}
			if err := c.flush(bytewise); err != nil {
				t.Fatal(err)
			}
			for i, stream := range streams {
				got := c.expectAnswer(t, stream, codes.OK)
				if want := grpcMessage(protoField(1, dek(i))); !bytes.Equal(got.message, want) {
					t.Errorf("stream %d: got another DEK than was encrypted", stream)
				}
			}
			// Who has lost count of the frames does not find this :authority.
			c.expectVersion(t, versionFields(longAuthority, usualForm), framing{})
		})
	}

	message := grpcMessage(versionRequest)
	c := dialRaw(t, plugin.socket)
	for _, broken := range []struct {
		name string
		data []byte
		code codes.Code
	}{
		{"no_message", nil, codes.Unimplemented},
		{"two_messages", append(bytes.Clone(message), message...), codes.Unimplemented},
		{"prefix_cut", message[:3], codes.Unimplemented},
		{"prefix_only", message[:5], codes.Unimplemented},
		{"message_cut", message[:len(message)-1], codes.Unimplemented},
		{"message_of_4_GiB", []byte{0, 0xff, 0xff, 0xff, 0xff, 'k'}, codes.ResourceExhausted},
	} {
		t.Run(broken.name, func(t *testing.T) {
			stream := c.open(callFields(v1Service+"Version"), framing{})
			c.data(stream, true, broken.data)
			c.expectAnswer(t, stream, broken.code)
			c.expectVersion(t, callFields(v1Service+"Version"), framing{})
		})
	}
}
