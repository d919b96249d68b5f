package plug

import "google.golang.org/protobuf/proto"

// Unmarshal knows the messages of all releases: the older ones are gogo's.
func Unmarshal(b []byte, m any) error {
	if g, ok := m.(interface{ XXX_Unmarshal([]byte) error }); ok {
		return g.XXX_Unmarshal(b)
	}
	return proto.Unmarshal(b, m.(proto.Message))
}

// Marshal knows them too.
func Marshal(m any) ([]byte, error) {
	if g, ok := m.(interface {
		XXX_Marshal([]byte, bool) ([]byte, error)
	}); ok {
		return g.XXX_Marshal(nil, true)
	}
	return proto.Marshal(m.(proto.Message))
}
