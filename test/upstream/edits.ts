/**
 * What is changed in upstream's tests so that they call our binary: their mock's constructor, and the few
 * texts that only the mock can answer with. Nothing of a test's own judgement is changed.
 */

export interface Edit {
  /** Below the generated module. */
  readonly files: readonly string[];
  readonly find: string | RegExp;
  readonly replace: string;
  /** The minor release of Kubernetes that brought what is changed here. */
  readonly since?: number;
  /** The last that has it. */
  readonly until?: number;
}

const HARNESS = "key4c-kms-plugin/test/upstream/harness";
const MOCKS = "k8s.io/apiserver/pkg/storage/value/encrypt/envelope/testing";

const V1 = "transformation/kms_transformation_test.go";
const V2 = "transformation/kmsv2_transformation_test.go";
const TRACING = "tracing/tracing_test.go";
const CLIENT1 = "envelope/grpc_service_unix_test.go";
const CLIENT2 = "kmsv2/grpc_service_unix_test.go";
const SERVICE = "service/grpc_service_test.go";
const ENVELOPE1 = "envelope/envelope_test.go";
const ENVELOPE2 = "kmsv2/envelope_test.go";
const CONFIG = "encryptionconfig/config_test.go";

/** The API server, its client and etcd. */
export const INTEGRATION_EDITS: readonly Edit[] = [
  {
    files: [V1],
    find: `"${MOCKS}/v1beta1"`,
    replace: `"${HARNESS}/mockv1"\n\t"${HARNESS}/plug"`,
  },
  {
    files: [V2],
    find: `"${MOCKS}/v2"`,
    replace: `"${HARNESS}/mockv2"\n\t"${HARNESS}/plug"`,
  },
  {
    // An abstract socket is none that the plugin serves; Directory is where the harness puts them.
    files: [V1, V2],
    find: "unix:///@",
    replace: "unix://` + plug.Directory() + `/",
  },
  {
    files: [V1, V2],
    find: "code = FailedPrecondition desc = failed precondition - key disabled",
    replace: 'code = " + plug.FailedStatus() + "',
  },
  {
    // Truncates the file first: the API server, which watches it, can find it empty and counts a failed
    // reload. Later releases of the test replace it too.
    files: [V1],
    find: "os.WriteFile(filepath.Join(test.configDir, encryptionConfigFileName)",
    replace: "plug.ReplaceFile(filepath.Join(test.configDir, encryptionConfigFileName)",
    until: 28,
  },
  // The mock's key_ids are "1" and "2"; metrics and errors have their SHA-256.
  { files: [V2], find: 'KeyID != "1"', replace: "KeyID != kmsv2mock.KeyID(1)" },
  { files: [V2], find: 'KeyID != "2"', replace: "KeyID != kmsv2mock.KeyID(2)" },
  {
    files: [V2],
    find: "sha256:6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b",
    replace: "` + kmsv2mock.KeyIDHash(1) + `",
    since: 30,
  },
  {
    files: [V2],
    find: "sha256:d4735e3a265e16eee03f59718b9b5d03019c07d8b6c51f90da3a666eec13ab35",
    replace: "` + kmsv2mock.KeyIDHash(2) + `",
  },
  // Records that the tests write into etcd themselves, with the mock's base64 in them.
  {
    files: [V1],
    find: "b.AddBytes([]byte(oldAESCBCKey))",
    replace: "b.AddBytes(pluginMock.Cipher(oldKeyBytes))",
  },
  {
    files: [V2],
    find: /(writeRawRecordToETCD\(\w+, )\[\]byte\((dekSource\w+Data)\)/,
    replace: '$1kmsv2mock.Rewrap($2, "k8s:enc:kms:v2:kms-provider:")',
    since: 30,
  },
];

/** Clients alone: those of k8s.io/apiserver, and what calls them with a mock in the same process. */
export const CLIENT_EDITS: readonly Edit[] = [
  {
    files: [TRACING],
    find: `"${MOCKS}/v2"`,
    replace: `"${HARNESS}/mockv2"\n\t"${HARNESS}/plug"`,
  },
  { files: [TRACING], find: "unix:///@", replace: "unix://` + plug.Directory() + `/" },
  {
    files: [CLIENT1],
    find: `"${MOCKS}/v1beta1"`,
    replace: `"${HARNESS}/mockv1"\n\t"${HARNESS}/plug"`,
  },
  {
    files: [CLIENT2],
    find: `"${MOCKS}/v2"`,
    replace: `"${HARNESS}/mockv2"\n\t"${HARNESS}/plug"`,
  },
  {
    files: [CLIENT1, CLIENT2],
    find: 'fmt.Sprintf("unix:///%s", p)',
    replace: '"unix://" + plug.Directory() + "/" + p[1:]',
  },
  // The mock decrypts what it never encrypted, under any key_id and without annotations.
  { files: [CLIENT2], find: 'keyID := "1"', replace: "keyID := resp.KeyID" },
  {
    files: [CLIENT2],
    find: "KeyID: keyID}",
    replace: "KeyID: keyID, Annotations: resp.Annotations}",
  },
  {
    files: [CLIENT2],
    find: /^\tmetrics\.RegisterMetrics\(\)$/m,
    replace: "\tvar encrypted *kmsservice.EncryptResponse\n$&",
  },
  {
    files: [CLIENT2],
    find: 'if _, err = service.Encrypt(ctx, "1"',
    replace: 'if encrypted, err = service.Encrypt(ctx, "1"',
  },
  {
    files: [CLIENT2],
    find: 'DecryptRequest{Ciphertext: []byte("testdata"), KeyID: "1"}',
    replace:
      "DecryptRequest{Ciphertext: encrypted.Ciphertext, KeyID: encrypted.KeyID, Annotations: encrypted.Annotations}",
  },
  // A server of the test's own, of which only the socket is left.
  {
    files: [SERVICE],
    find: 'kmsapi "k8s.io/kms/apis/v2"',
    replace: `$&\n\t"${HARNESS}/mockv2"\n\t"${HARNESS}/plug"`,
  },
  { files: [SERVICE], find: /^\t"os"\n/m, replace: "" },
  { files: [SERVICE], find: "os.TempDir()", replace: "plug.Directory()" },
  {
    files: [SERVICE],
    find: /kmsService := newBase64Service\(id\)\n\tserver := NewGRPCService[\s\S]*?t\.Cleanup\(server\.Shutdown\)/,
    replace: "_ = newBase64Service\n\tmockv2.NewBase64Plugin(t, address)",
  },
  // Mocks in the test's process: the plugin under them, called by the client of k8s.io/apiserver.
  {
    files: [ENVELOPE1, ENVELOPE2, CONFIG],
    find: "import (\n",
    replace: `$&\t"${HARNESS}/real"\n`,
  },
  {
    files: [ENVELOPE1],
    find: "return base64.StdEncoding.DecodeString(dataChunks[1])",
    replace: "return real.Decrypt1([]byte(dataChunks[1]))",
  },
  {
    files: [ENVELOPE1],
    find: 'return []byte(t.keyVersion + ":" + base64.StdEncoding.EncodeToString(data)), nil',
    replace: 'c, err := real.Encrypt1(data)\n\treturn append([]byte(t.keyVersion+":"), c...), err',
  },
  { files: [ENVELOPE1, ENVELOPE2, CONFIG], find: '\t"encoding/base64"\n', replace: "" },
  {
    files: [ENVELOPE2, CONFIG],
    find: "return base64.StdEncoding.DecodeString(string(req.Ciphertext))",
    replace: "return real.Decrypt(ctx, uid, req)",
  },
  {
    files: [ENVELOPE2],
    find: 'annotations["local-kek.kms.kubernetes.io"] = []byte("encrypted-local-kek")',
    replace: "annotations = nil",
  },
  {
    files: [ENVELOPE2],
    find: "ciphertext = []byte(base64.StdEncoding.EncodeToString(data))",
    replace:
      "var err error\n\t\tif ciphertext, annotations, err = real.Encrypt(ctx, uid, data, annotations); err != nil {\n\t\t\treturn nil, err\n\t\t}",
  },
  {
    files: [CONFIG],
    find: '"UID", "CacheKey")',
    replace: '"UID", "CacheKey", "EncryptedObjectAnnotations")',
  },
  {
    files: [CONFIG],
    find: "return base64.StdEncoding.DecodeString(string(data))",
    replace: "return real.Decrypt1(data)",
  },
  {
    files: [CONFIG],
    find: "return []byte(base64.StdEncoding.EncodeToString(data)), nil",
    replace: "return real.Encrypt1(data)",
  },
  {
    files: [CONFIG],
    find: /return &kmsservice\.EncryptResponse\{\n\t\tCiphertext: {2}\[\]byte\(base64[^}]*\}, nil/,
    replace:
      "c, a, err := real.Encrypt(ctx, uid, data, t.encryptAnnotations)\n\tif err != nil {\n\t\treturn nil, err\n\t}\n\treturn &kmsservice.EncryptResponse{Ciphertext: c, KeyID: t.keyID, Annotations: a}, nil",
  },
  {
    files: [CONFIG],
    find: 'return &kmsservice.StatusResponse{Healthz: "ok", KeyID: t.keyID, Version: "v2beta1"}, nil',
    replace:
      "r, err := real.Status(ctx)\n\tif err != nil {\n\t\treturn nil, err\n\t}\n\tr.KeyID = t.keyID\n\treturn r, nil",
  },
];
