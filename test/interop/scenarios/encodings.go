package scenarios

import (
	"bytes"
	"compress/gzip"
	"testing"

	"google.golang.org/grpc/codes"
)

// EveryEncodingHasItsStatus sends messages that are compressed, or say so (case 9 of kubernetes.md §7).
// kube-apiserver compresses nothing; whatever comes instead must not end the connection of the others.
func EveryEncodingHasItsStatus(t *testing.T) {
	const (
		notCompressed = 0
		compressed    = 1
	)
	plugin := startPlugin(t, startEmulator(t), probeInterval)
	c := dialRaw(t, plugin.socket)
	fields := callFields(v1Service + "Version")
	plain, err := c.call(fields, framing{}, versionRequest)
	if err != nil {
		t.Fatal(err)
	}
	zipped := gzipped(t, versionRequest)

	for _, sent := range []struct {
		name, encoding string
		flag           byte
		message        []byte
		code           codes.Code
	}{
		{"gzip", "gzip", compressed, zipped, codes.OK},
		{"gzip_not_used", "gzip", notCompressed, versionRequest, codes.OK},
		{"gzip_cut", "gzip", compressed, zipped[:len(zipped)-1], codes.Internal},
		{"gzip_not_gzip", "gzip", compressed, versionRequest, codes.Internal},
		{"gzip_of_8_MiB", "gzip", compressed, gzipped(t, make([]byte, 8<<20)), codes.ResourceExhausted},
		{"unknown", "zstd", compressed, versionRequest, codes.Unimplemented},
		{"unknown_not_used", "zstd", notCompressed, versionRequest, codes.OK},
		{"none_but_compressed", "", compressed, zipped, codes.InvalidArgument},
		// gRPC wants INTERNAL; grpc-js takes the message as it is.
		{"none_but_flag", "", compressed, versionRequest, codes.OK},
	} {
		t.Run(sent.name, func(t *testing.T) {
			fields := fields
			if sent.encoding != "" {
				fields = callFields(v1Service+"Version", metadata("grpc-encoding", sent.encoding))
			}
			stream := c.open(fields, framing{})
			message := grpcMessage(sent.message)
			message[0] = sent.flag
			c.data(stream, true, message)
			got := c.expectAnswer(t, stream, sent.code)
			if sent.code == codes.OK && !bytes.Equal(got.message, plain.message) {
				t.Errorf("got %q, want %q", got.message, plain.message)
			}
			c.expectVersion(t, fields, framing{})
		})
	}
}

func gzipped(t *testing.T, message []byte) []byte {
	t.Helper()
	var zipped bytes.Buffer
	writer := gzip.NewWriter(&zipped)
	if _, err := writer.Write(message); err != nil {
		t.Fatal(err)
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	return zipped.Bytes()
}
