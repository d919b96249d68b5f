package scenarios

import (
	"bytes"
	"fmt"
	"net/url"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// EveryAuthorityIsServed calls with each form of :authority that some release of kube-apiserver sends. The
// raw path is no legal authority, and is what all up to 1.28 send.
func EveryAuthorityIsServed(t *testing.T, client Client) {
	forEachAPI(t, func(t *testing.T, api string) {
		plugin := startPlugin(t, startEmulator(t), probeInterval)
		for _, form := range []struct{ name, authority string }{
			{"what_this_release_sends", ""},
			{"raw_path", plugin.socket},
			{"percent-encoded_path", url.PathEscape(plugin.socket)},
			{"localhost", "localhost"},
			{"abstract_socket", "@key4c-kms"},
		} {
			t.Run(form.name, func(t *testing.T) {
				c := connect(t, plugin.socket, form.authority)
				wantVersion := map[string]string{"v1": "v1beta1", "v2": client.StatusVersion}[api]
				// More than once, so that the header fields come out of the dynamic table too.
				for i := range 3 {
					if version, err := wireVersion(api, c); err != nil || version != wantVersion {
						t.Fatalf("version %q, error %v; want %q", version, err, wantVersion)
					}
					if err := roundTrip(api, c, dek(i)); err != nil {
						t.Fatal(err)
					}
				}
				sent, err := sentAuthority(c.sent.first())
				if err != nil {
					t.Fatal(err)
				}
				want := form.authority
				if want == "" {
					want = client.Authority(plugin.socket)
				}
				if sent != want {
					t.Fatalf("this grpc-go sent :authority %q, which tests something else than %q", sent, want)
				}
				if dials := c.dials.Load(); dials != 1 {
					t.Fatalf("%d connections, want the first one to last", dials)
				}
			})
		}
	})
}

// sentAuthority is the :authority of the first request in what a client sent.
func sentAuthority(sent []byte) (string, error) {
	sent, found := bytes.CutPrefix(sent, []byte(http2.ClientPreface))
	if !found {
		return "", fmt.Errorf("no HTTP/2 preface was sent")
	}
	framer := http2.NewFramer(nil, bytes.NewReader(sent))
	framer.ReadMetaHeaders = hpack.NewDecoder(tableBytes, nil)
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return "", fmt.Errorf("no HEADERS in what was sent: %w", err)
		}
		if headers, ok := frame.(*http2.MetaHeadersFrame); ok {
			return headers.PseudoValue("authority"), nil
		}
	}
}
