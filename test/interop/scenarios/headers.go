package scenarios

import (
	"bytes"
	"fmt"
	"math/rand"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
)

// rawAuthority is what kube-apiserver sends up to 1.28, and what no HTTP/2 server need accept.
const rawAuthority = "/run/key4c-kms/kms.sock"

// longAuthority needs a length of three bytes, raw as well as Huffman-coded.
var longAuthority = "/run/" + strings.Repeat("key4c-kms/", 45) + "kms.sock"

// EveryFormOfHeadersIsServed calls over a raw connection with every form in which HPACK and HTTP/2 can carry
// an :authority that no server need accept. Each is a real call of KMS v1 Version. grpc-go only ever sends
// one of these forms; others may come from a later or another client.
func EveryFormOfHeadersIsServed(t *testing.T) {
	plugin := startPlugin(t, startEmulator(t), probeInterval)

	for _, framing := range []framing{
		{name: "plain"},
		{name: "padded", padded: true},
		{name: "priority", priority: true},
		{name: "padded_and_priority", padded: true, priority: true},
		{name: "continuation", cuts: []int{1, 20, 21}},
		{name: "all_byte_by_byte", padded: true, priority: true, cuts: []int{10, 30}, bytewise: true},
	} {
		for _, form := range authorityForms() {
			for _, authority := range []string{rawAuthority, longAuthority} {
				name := fmt.Sprintf("%s/%s/%d_bytes", framing.name, form, len(authority))
				t.Run(name, func(t *testing.T) {
					c := dialRaw(t, plugin.socket)
					// Again, so that what was indexed is used.
					for range 3 {
						c.expectVersion(t, versionFields(authority, form), framing)
					}
				})
			}
		}
	}

	t.Run("cut_at_every_byte", func(t *testing.T) {
		c := dialRaw(t, plugin.socket)
		form := fieldForm{name: nameHuffman, valueHuffman: true, indexing: notIndexed}
		c.expectVersion(t, versionFields(rawAuthority, form), framing{})
		for cut := range c.lastBlockBytes + 1 {
			c.expectVersion(t, versionFields(rawAuthority, form), framing{cuts: []int{cut}})
		}
	})

	// A client whose dynamic table is small evicts all the time. If the plugin's table fell out of step,
	// some request would arrive with other fields than were sent.
	t.Run("evictions", func(t *testing.T) {
		const seed = 7541
		random := rand.New(rand.NewSource(seed))
		c := dialRaw(t, plugin.socket)
		forms := authorityForms()
		for range 1000 {
			if random.Intn(10) == 0 {
				c.fields.resize([]int{0, 40, 64, 100, 128, 200, 300, 4096}[random.Intn(8)])
			}
			authority := fmt.Sprintf("/run/%s%d.sock", strings.Repeat("k", random.Intn(60)), random.Intn(5))
			fields := versionFields(authority, forms[random.Intn(len(forms))])
			// Something to be evicted, and to be found again.
			trace := fieldForm{nameRaw, random.Intn(2) == 0, incremental}
			fields = append(fields, sentField{"x-trace", fmt.Sprint(random.Intn(8)), trace})
			c.expectVersion(t, fields, framing{padded: random.Intn(4) == 0})
		}
	})
}

// String is for names of tests.
func (f fieldForm) String() string {
	name := map[nameForm]string{
		nameFromStaticTable: "static_name", nameRaw: "raw_name", nameHuffman: "huffman_name",
	}[f.name]
	value := map[bool]string{false: "raw_value", true: "huffman_value"}[f.valueHuffman]
	indexing := map[indexing]string{
		incremental: "indexed", notIndexed: "not_indexed", neverIndexed: "never_indexed",
	}[f.indexing]
	return name + "," + value + "," + indexing
}

func authorityForms() (forms []fieldForm) {
	for _, name := range []nameForm{nameFromStaticTable, nameRaw, nameHuffman} {
		for _, valueHuffman := range []bool{false, true} {
			for _, indexing := range []indexing{incremental, notIndexed, neverIndexed} {
				forms = append(forms, fieldForm{name, valueHuffman, indexing})
			}
		}
	}
	return forms
}

// versionFields are those of a Version call whose :authority has this form.
func versionFields(authority string, form fieldForm) []sentField {
	fields := callFields(v1Service + "Version")
	for i := range fields {
		if fields[i].name == ":authority" {
			fields[i].value, fields[i].form = authority, form
		}
	}
	return fields
}

// expectVersion is one call on a stream of its own, and fails unless it answers v1beta1.
func (c *rawConnection) expectVersion(t *testing.T, fields []sentField, framing framing) {
	t.Helper()
	got, err := c.call(fields, framing, versionRequest)
	if err == nil {
		err = expectVersionAnswer(got)
	}
	if err != nil {
		t.Fatalf("stream %d: %v", c.nextStream-2, err)
	}
}

func expectVersionAnswer(a *answer) error {
	if err := a.expectStatus(codes.OK); err != nil {
		return err
	}
	if want := protoField(1, []byte("v1beta1")); !bytes.Contains(a.message, want) {
		return fmt.Errorf("answer %q does not contain %q", a.message, want)
	}
	return nil
}
