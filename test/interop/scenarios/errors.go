package scenarios

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
)

const invalidText = "the request is not valid"

// ErrorsAreTrailersOnly looks at the frames that a failed call is answered with (case 6 of kubernetes.md §7):
// one HEADERS frame with the HTTP status of a success, gRPC's own status, and a constant text.
func ErrorsAreTrailersOnly(t *testing.T) {
	plugin := startPlugin(t, startEmulator(t), probeInterval)
	keyID := protoField(3, []byte(plugin.keyID(t)))
	garbage := []byte("no ciphertext of ours")
	c := dialRaw(t, plugin.socket)

	for _, failing := range []struct {
		name, path string
		request    []byte
		code       codes.Code
		text       string
	}{
		{"v1_garbage", v1Service + "Decrypt", v1Request(garbage), codes.InvalidArgument, invalidText},
		{"v1_empty", v1Service + "Decrypt", v1Request(nil), codes.InvalidArgument, invalidText},
		{
			"v2_garbage", v2Service + "Decrypt", append(protoField(1, garbage), keyID...),
			codes.InvalidArgument, invalidText,
		},
		{
			"v2_without_key_id", v2Service + "Decrypt", protoField(1, garbage),
			codes.InvalidArgument, "the request has no key_id",
		},
		{
			"v2_unknown_key_id", v2Service + "Decrypt",
			append(protoField(1, garbage), protoField(3, []byte("another"))...),
			codes.NotFound, "the ciphertext belongs to a key that is not configured",
		},
		{"malformed_protobuf", v2Service + "Encrypt", []byte{0xff}, codes.InvalidArgument, invalidText},
		{
			"unknown_method", v2Service + "Reencrypt", nil, codes.Unimplemented,
			"The server does not implement the method " + v2Service + "Reencrypt",
		},
	} {
		t.Run(failing.name, func(t *testing.T) {
			got, err := c.call(callFields(failing.path), framing{}, failing.request)
			if err != nil {
				t.Fatal(err)
			}
			if err := got.expectStatus(failing.code); err != nil {
				t.Error(err)
			}
			if text := got.text(); text != failing.text {
				t.Errorf("grpc-message %q, want %q", text, failing.text)
			}
			expectFrames(t, got, http2.FrameHeaders)
			c.expectVersion(t, callFields(v1Service+"Version"), framing{})
		})
	}

	t.Run("success", func(t *testing.T) {
		got, err := c.call(callFields(v1Service+"Version"), framing{}, versionRequest)
		if err != nil {
			t.Fatal(err)
		}
		if err := got.expectStatus(codes.OK); err != nil {
			t.Error(err)
		}
		expectFrames(t, got, http2.FrameHeaders, http2.FrameData, http2.FrameHeaders)
	})
}

// expectFrames also looks at what is the same in every answer of gRPC.
func expectFrames(t *testing.T, a *answer, want ...http2.FrameType) {
	t.Helper()
	if !slices.Equal(a.frames, want) {
		t.Errorf("the answer is %v, want %v", a.frames, want)
	}
	if a.headers[":status"] != "200" || !strings.HasPrefix(a.headers["content-type"], "application/grpc") {
		t.Errorf("headers %v, want :status 200 and application/grpc", a.headers)
	}
}
