package scenarios

import (
	"golang.org/x/net/http2/hpack"
)

// tableBytes is the size of a dynamic table before anybody changes it (RFC 9113 §6.5.2).
const tableBytes = 4096

// nameForm is how a literal header field tells its name (RFC 7541 §6.2).
type nameForm int

const (
	nameFromStaticTable nameForm = iota
	nameRaw
	nameHuffman
)

// indexing is what becomes of a literal header field.
type indexing byte

const (
	incremental  indexing = 0x40 // §6.2.1: into the dynamic table
	notIndexed   indexing = 0x00 // §6.2.2
	neverIndexed indexing = 0x10 // §6.2.3
)

// fieldForm is one of the ways to write a header field.
type fieldForm struct {
	name         nameForm
	valueHuffman bool
	indexing     indexing
}

const staticTableEntries = 61

// staticNames are the names, of those used here, that the static table has (RFC 7541 appendix A).
var staticNames = map[string]int{
	":authority": 1, ":method": 2, ":path": 4, ":scheme": 6, "content-type": 31, "user-agent": 58,
}

// fieldWriter is an HPACK encoder that can be told which form to use. The one of x/net always takes the
// shortest and never writes a name that the static table has.
type fieldWriter struct {
	block   []byte
	entries []hpack.HeaderField // newest first, as they are indexed
	size    int
	maxSize int
}

func newFieldWriter() *fieldWriter {
	return &fieldWriter{maxSize: tableBytes}
}

// resize changes the size of the dynamic table; only legal at the start of a block (§4.2).
func (w *fieldWriter) resize(maxSize int) {
	w.maxSize = maxSize
	w.evict(0)
	w.integer(0x20, 5, maxSize)
}

// write uses the dynamic table's entry if there is one, else a literal of the given form.
func (w *fieldWriter) write(name, value string, form fieldForm) {
	field := hpack.HeaderField{Name: name, Value: value}
	for i, entry := range w.entries {
		if entry == field {
			w.integer(0x80, 7, staticTableEntries+1+i)
			return
		}
	}
	prefixBits := 4
	if form.indexing == incremental {
		prefixBits = 6
	}
	index := staticNames[name]
	if form.name != nameFromStaticTable {
		index = 0
	}
	w.integer(byte(form.indexing), prefixBits, index)
	if index == 0 {
		w.text(name, form.name == nameHuffman)
	}
	w.text(value, form.valueHuffman)
	if form.indexing == incremental {
		w.insert(field)
	}
}

// take returns the block and starts the next.
func (w *fieldWriter) take() []byte {
	block := w.block
	w.block = nil
	return block
}

// insert follows §4.4: an entry larger than the table empties it.
func (w *fieldWriter) insert(field hpack.HeaderField) {
	size := int(field.Size())
	w.evict(size)
	if size <= w.maxSize {
		w.entries = append([]hpack.HeaderField{field}, w.entries...)
		w.size += size
	}
}

func (w *fieldWriter) evict(room int) {
	for len(w.entries) > 0 && w.size+room > w.maxSize {
		last := len(w.entries) - 1
		w.size -= int(w.entries[last].Size())
		w.entries = w.entries[:last]
	}
}

// integer is §5.1.
func (w *fieldWriter) integer(pattern byte, prefixBits, value int) {
	limit := 1<<prefixBits - 1
	if value < limit {
		w.block = append(w.block, pattern|byte(value))
		return
	}
	w.block = append(w.block, pattern|byte(limit))
	for value -= limit; value >= 0x80; value >>= 7 {
		w.block = append(w.block, byte(value)|0x80)
	}
	w.block = append(w.block, byte(value))
}

// text is §5.2.
func (w *fieldWriter) text(text string, huffman bool) {
	if !huffman {
		w.integer(0, 7, len(text))
		w.block = append(w.block, text...)
		return
	}
	w.integer(0x80, 7, int(hpack.HuffmanEncodeLength(text)))
	w.block = hpack.AppendHuffmanString(w.block, text)
}
