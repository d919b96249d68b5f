package mockv2

import (
	"context"
	"encoding/base64"
	"strings"

	"key4c-kms-plugin/test/upstream/harness/plug"

	"k8s.io/apimachinery/pkg/util/uuid"
	kmstypes "k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2/v2"
	kmsapi "k8s.io/kms/apis/v2"
)

// Rewrap puts the plugin's ciphertext of the same DEK source in the place of the mock's base64.
func Rewrap(raw, prefix string) []byte {
	o := &kmstypes.EncryptedObject{}
	if err := plug.Unmarshal([]byte(strings.TrimPrefix(raw, prefix)), o); err != nil {
		panic(err)
	}
	dek, err := base64.StdEncoding.DecodeString(string(o.EncryptedDEKSource))
	if err != nil {
		panic(err)
	}
	r, err := latest.client.Encrypt(context.Background(), &kmsapi.EncryptRequest{Plaintext: dek, Uid: string(uuid.NewUUID())})
	if err != nil {
		panic(err)
	}
	o.EncryptedDEKSource, o.KeyID, o.Annotations = r.Ciphertext, r.KeyId, r.Annotations
	b, err := plug.Marshal(o)
	if err != nil {
		panic(err)
	}
	return append([]byte(prefix), b...)
}
