package scenarios

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
)

const (
	// judgingCount is how many configurations are made; judgingVariable asks for more, judgingSeedVariable for
	// others.
	judgingCount        = 2000
	judgingVariable     = "JUDGING_COUNT"
	judgingSeedVariable = "JUDGING_SEED"

	// A plugin that is not there is waited for no longer. A healthy one may look so on a busy machine: then
	// nobody is seen to write, which is counted.
	judgingTimeout = 5 * time.Second

	corpus       = "../../kubernetes/corpus"
	corpusSocket = "/run/key4c-kms/kms.sock"
	bun          = "../../../node_modules/.bin/bun"
)

// judged is what the doctor says of a file.
type judged struct {
	File    string
	Verdict string
	Writes  map[string]string
	Why     string
}

// DoctorJudgesAsTheLoader makes configurations, and has kube-apiserver's own code and the doctor say of each
// whether it loads, and of some resources who writes them. Wanted differences: the doctor may say that it cannot
// tell, of at most one in twenty.
func DoctorJudgesAsTheLoader(t *testing.T, client Client) {
	plugin := startPlugin(t, startEmulator(t), probeInterval)
	seed := environmentNumber(t, judgingSeedVariable, 1)
	count := environmentNumber(t, judgingVariable, judgingCount)
	directory := t.TempDir()
	maker := newConfigurationMaker(t, rand.New(rand.NewSource(int64(seed))), plugin.socket)
	texts := map[string]string{}
	for i := range count {
		name := fmt.Sprintf("%06d.yaml", i)
		texts[name] = maker.configuration()
		if err := os.WriteFile(filepath.Join(directory, name), []byte(texts[name]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	answers := askDoctor(t, directory)
	if len(answers) != count {
		t.Fatalf("the doctor judged %d of %d", len(answers), count)
	}
	type counts struct{ unclear, loads, refused, unwritten, written int }
	tallies := make([]counts, count)
	var inFull sync.Once
	inParallel(t, "judge", 16, count, func(i int) error {
		answer := answers[i]
		loads, writes, loadError := loadAndWrite(client, filepath.Join(directory, answer.File))
		count := &tallies[i]
		if loads {
			count.loads++
		} else {
			count.refused++
		}
		fail := func(what string) error {
			inFull.Do(func() { t.Logf("%s, the first that failed:\n%s", answer.File, texts[answer.File]) })
			return fmt.Errorf("seed %d, %s: %s\nloader: %v\ndoctor: %s %s",
				seed, answer.File, what, loadError, answer.Verdict, answer.Why)
		}
		if answer.Verdict == "unclear" {
			count.unclear++
			return nil
		}
		if loads != (answer.Verdict == "loads") {
			return fail("they disagree whether it loads")
		}
		for resource, prefix := range answer.Writes {
			if !loads {
				break
			}
			stored, isWritten := writes[resource]
			switch {
			case !isWritten && strings.HasPrefix(prefix, "k8s:enc:kms:"):
				count.unwritten++
			case !isWritten:
				return fail(fmt.Sprintf("nobody wrote %s, and the doctor names %q", resource, prefix))
			case prefix == "" && bytes.HasPrefix(stored, []byte("k8s:enc:")),
				!bytes.HasPrefix(stored, []byte(prefix)):
				return fail(fmt.Sprintf("%s is stored as %.60q, and the doctor names %q", resource, stored, prefix))
			default:
				count.written++
			}
		}
		return nil
	})
	var sum counts
	for _, one := range tallies {
		sum.unclear += one.unclear
		sum.loads += one.loads
		sum.refused += one.refused
		sum.unwritten += one.unwritten
		sum.written += one.written
	}
	t.Logf("seed %d: %+v of %d", seed, sum, count)
	if sum.unclear*20 > count {
		t.Errorf("the doctor cannot tell of %d in %d", sum.unclear, count)
	}
	// Else the comparison would say little.
	if sum.loads*4 < count || sum.refused*4 < count || sum.written < sum.loads {
		t.Errorf("the configurations are not mixed: %+v", sum)
	}
}

func environmentNumber(t *testing.T, name string, fallback int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return fallback
	}
	number, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return number
}

// askDoctor runs the doctor's judge once for all files, in the order of their names.
func askDoctor(t *testing.T, directory string) []judged {
	t.Helper()
	command := exec.Command(bun, "../judge.ts", directory)
	command.Stderr = os.Stderr
	output, err := command.Output()
	if err != nil {
		t.Fatalf("judge.ts: %v", err)
	}
	var answers []judged
	for line := range strings.Lines(string(output)) {
		var answer judged
		if err := json.Unmarshal([]byte(line), &answer); err != nil {
			t.Fatalf("judge.ts printed %q: %v", line, err)
		}
		answers = append(answers, answer)
	}
	return answers
}

// loadAndWrite has kube-apiserver's code load a file and, where it does, write one object of each resource. What could
// not be written is not among what is returned.
func loadAndWrite(client Client, path string) (loads bool, writes map[string][]byte, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), judgingTimeout)
	defer cancel()
	config, err := client.Load(ctx, path, true)
	if err != nil {
		return false, nil, err
	}
	transformers := encryptionconfig.StaticTransformers(config.Transformers)
	writes = map[string][]byte{}
	for _, resource := range []string{"secrets", "configmaps", "deployments.apps"} {
		object := newObject(resource)
		if object.write(transformers.TransformerForResource(schema.ParseGroupResource(resource))) == nil {
			writes[resource] = object.stored
		}
	}
	return true, writes, nil
}

// configurationMaker makes configurations of which about half load.
type configurationMaker struct {
	random *rand.Rand
	socket string
	// corpus are made by hand, each with one thing that matters.
	corpus []string
}

func newConfigurationMaker(t *testing.T, random *rand.Rand, socket string) *configurationMaker {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(corpus, "*.[yj]*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no corpus: %v", err)
	}
	m := &configurationMaker{random: random, socket: socket}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		m.corpus = append(m.corpus, strings.ReplaceAll(string(text), corpusSocket, socket))
	}
	return m
}

func (m *configurationMaker) one(choices ...string) string {
	return choices[m.random.Intn(len(choices))]
}

func (m *configurationMaker) chance(percent int) bool {
	return m.random.Intn(100) < percent
}

// mostly is one of the usual, and now and then another.
func (m *configurationMaker) mostly(usual []string, others ...string) string {
	if m.chance(97) {
		return m.one(usual...)
	}
	return m.one(others...)
}

func (m *configurationMaker) configuration() string {
	text := m.one(m.corpus...)
	if m.chance(75) {
		text = m.composed()
	}
	if m.chance(30) {
		for range 1 + m.random.Intn(2) {
			text = m.mutated(text)
		}
	}
	return text
}

// composed is well-formed YAML whose values are mostly those of a good configuration.
func (m *configurationMaker) composed() string {
	var b strings.Builder
	b.WriteString(m.mostly([]string{"", "", "", "---\n", "# a comment\n", "\ufeff"}, "--- # x\n", "...\n", "---\n---\n", "\n\n", "%YAML 1.1\n---\n"))
	head := []string{
		"apiVersion: " + m.mostly([]string{"apiserver.config.k8s.io/v1"}, "v1", "apiserver.config.k8s.io/v1beta1", "'apiserver.config.k8s.io/v1'", "1", "", "apiserver.config.k8s.io/v2"),
		"kind: " + m.mostly([]string{"EncryptionConfiguration", "\"EncryptionConfiguration\""}, "EncryptionConfig", "List", "", "Kind"),
	}
	if m.chance(3) {
		head = []string{"apiVersion: v1", "kind: EncryptionConfig"}
	}
	if m.chance(2) {
		head = append(head, m.one("metadata: {}", "Kind: EncryptionConfiguration", "kind: EncryptionConfiguration", "x: 1"))
	}
	m.random.Shuffle(len(head), func(i, j int) { head[i], head[j] = head[j], head[i] })
	b.WriteString(strings.Join(head, "\n") + "\nresources:\n")
	indent := m.one("", "  ")
	for group := range 1 + m.random.Intn(3) {
		m.group(&b, indent, group)
	}
	b.WriteString(m.mostly([]string{"", "", "---\n", "...\n"}, "---\nkind: [", "---\nkind: Pod\n", "\t", "# end"))
	return b.String()
}

func (m *configurationMaker) group(b *strings.Builder, indent string, group int) {
	usual := [][]string{{"secrets", "configmaps"}, {"deployments.apps", "secrets", "'*.apps'"}, {"'*.'", "'*.*'", "secrets", "\"*.*\""}}[group]
	names := []string{}
	for range 1 + m.random.Intn(3)/2 {
		names = append(names, m.mostly(usual, "'*'", "secrets.", "events", "events.events.k8s.io", "Secrets", "'secrets.*'", "\"\"", "", "1", "x.extensions", "apiserveripinfo", "true", "*.*", "ключи", "'*.apps'", "null", "pandas.bears.example", "~", "secrets"))
	}
	key := indent + "- resources:"
	if m.chance(30) {
		b.WriteString(key + " [" + strings.Join(names, ", ") + "]\n")
	} else {
		b.WriteString(key + "\n")
		for _, name := range names {
			b.WriteString(indent + "  - " + name + m.one("", "", " ", " # why") + "\n")
		}
	}
	b.WriteString(indent + "  providers:" + m.mostly([]string{"\n"}, " \n", " []\n", " null\n", " # all\n"))
	for range 1 + m.random.Intn(3) {
		m.provider(b, indent+"  ")
	}
}

func (m *configurationMaker) provider(b *strings.Builder, indent string) {
	defer func() {
		if m.chance(2) {
			b.WriteString(indent + "  " + m.one("identity: {}", "identity: null", "kms: null", "name: x") + "\n")
		}
	}()
	name := m.one("a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "key4c")
	switch m.random.Intn(10) {
	case 0, 1, 2:
		b.WriteString(indent + "- identity: " + m.mostly([]string{"{}"}, "", "null", "[]", "{a: 1}", "{ }", "{} # x", "'{}'", "true") + "\n")
	case 3, 4:
		kind := m.mostly([]string{"aescbc", "aesgcm", "secretbox"}, "AESCBC", "aes", "identity")
		b.WriteString(indent + "- " + kind + ":\n" + indent + "    keys:\n")
		for range 1 + m.random.Intn(2) {
			b.WriteString(indent + "    - name: " + m.mostly([]string{name, "key1", "'key 2'"}, "1", "", "on", "2001-01-01", "a:b") + "\n")
			b.WriteString(indent + "      secret: " + m.mostly([]string{"MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="},
				"MDEyMzQ1Njc4OTAxMjM0NQ==", "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz", "MDEyMzQ1Njc4OTAxMjM0NQ", "MDEyMzQ1Njc4OQ==", "", "12345678", "\"MDEyMzQ1Njc4OTAx\\nMjM0NQ==\"", "_-EyMzQ1Njc4OTAxMjM0NQ==", "MDEyMzQ1Njc4OTAxMjM0NR==", "null", "'MDEyMzQ1Njc4OTAxMjM0NQ== '") + "\n")
		}
	case 5:
		flow := "{apiVersion: v2, name: %s, endpoint: %s}"
		if m.chance(20) {
			flow = m.one(`{"apiVersion":"v2","name":"%s","endpoint":"%s"}`, "{apiVersion: v2, name: %s, endpoint: %s,}", "{apiVersion: v1, name: %s, endpoint: '%s', cachesize: 1}", "{apiVersion: v2, name: %s,\n          endpoint: %s}")
		}
		b.WriteString(indent + "- kms: " + fmt.Sprintf(flow, name, "unix://"+m.socket) + "\n")
	default:
		m.kms(b, indent, name)
	}
}

func (m *configurationMaker) kms(b *strings.Builder, indent, name string) {
	api := m.mostly([]string{"v2", "v2", "v1", "\"v2\""}, "'v1'", "v1beta1", "2", "V2", "", "null", "\"v2 \"", "v2 # x", "!!str v2", "!v v2")
	fields := []string{
		"apiVersion: " + api,
		"name: " + m.mostly([]string{name, name, "'" + name + " x'", "\"" + name + "\""}, "a:b", "on", "yes", "1", "0777", "1e3", "~", "\"\"", "имя", "a/b", "2001-01-01", "0x1F", "1_000", ".5", "-", "=", "<<", "!!str 5", "0o17", "08", "1:30", ".inf", "\"a\\tb\"", "a#b", "a #b", "&x v", "|\n"+indent+"      block", ">-\n"+indent+"      folded\n"+indent+"      twice", "N", "off", "None", "+1", "9223372036854775808", "99999999999999999999", "1.", "1e400", "_1", "1__0", "0b2", "- x", "'it''s'", "a, b", "[a]", "{a}", "@a", "`a", "%a", "a: b", "\"\\u0041\"", "\"\\x41\\/\"", "'"+name+"\n"+indent+"      y'", "-1", "--", "?", ":", "a:"),
		"endpoint: " + m.mostly([]string{"unix://" + m.socket, "\"unix://" + m.socket + "\""}, "unix:"+m.socket, "unix:/"+m.socket, "unix:///"+m.socket, "unix://localhost"+m.socket, "UNIX://"+m.socket, "unix://"+m.socket+"?x=1", "unix://"+m.socket+"#f", "unix://"+m.socket+" #f", "unix://"+m.socket+"%20", "unix://"+m.socket+"%zz", "'unix://"+m.socket+" '", "tcp://127.0.0.1:1", m.socket, "''", "unix:///tmp/.."+m.socket, "unix://"+m.socket+"/", "'unix://a b"+m.socket+"'", "unix://h:1"+m.socket, "unix://h:x"+m.socket, "unix://u@h"+m.socket, "unix:x", "unix:", "unix://", "unix:///@abstract", "\"unix://"+m.socket+"\\n\"", ":unix", "1unix:/x", "unix+x:///a", "unix:///a?%zz", "unix:///a#%zz", "unix:///%00", "unix:///ä", "unix:///%ff", "unix://[::1]/x", "unix://[::1/x", "unix://ä/x", "unix://%41/x", "unix:///a b", "null", "[]"),
	}
	if m.chance(60) {
		fields = append(fields, "timeout: "+m.mostly([]string{"3s", "3s", "5s", "1h", "1m30s", "\"3s\""}, ".5s", "1.5s", "3", "\"3\"", "3000ms", "+3s", "-3s", "0s", "0", "\"0\"", "1µs", "1us", "3S", "3 s", "''", "null", "99999999h", "2562047h", "2562048h", "1d", "3s5", "5.s", ".s", "1e3s", "1_0s", "1h.5m", "0.1ns", "1.s", "+", "-0", "3s ", "3s # x", "3\u00b5s", "1 h", "9223372036854775807ns", "9223372036854775808ns"))
	}
	if (api == "v1" && m.chance(50)) || m.chance(2) {
		fields = append(fields, "cachesize: "+m.mostly([]string{"1000", "1", "-1"}, "0", "1.5", "1e3", "\"1000\"", "null", "0x10", "0o10", "010", "1_000", "2147483647", "2147483648", "-2147483648", "-2147483649", "1.0", "true", ".5", "-0", "1e30", "1e-7", "0b11", "+5", "-0x5", "~", ".inf", "12e1", "0.0", "1_0.0"))
	}
	if m.chance(2) {
		fields = append(fields, m.one("timeOut: 3s", "pandas: 1", "timeout: 3s", "name: x", "'name': y", "? name\n"+indent+"    : z", "<<: {timeout: 4s}", "<<: []", "1: 2", "null: 1", "[a]: 1", "? [a]\n"+indent+"    : 1"))
	}
	m.random.Shuffle(len(fields), func(i, j int) { fields[i], fields[j] = fields[j], fields[i] })
	b.WriteString(indent + "- kms:" + m.mostly([]string{"\n"}, " &k\n", " # x\n", " null\n", " !!map\n"))
	for _, field := range fields {
		b.WriteString(indent + "    " + field + "\n")
	}
}

// mutated changes the text in one place, as a slip of the hand does.
func (m *configurationMaker) mutated(text string) string {
	lines := strings.SplitAfter(text, "\n")
	at := m.random.Intn(len(lines))
	switch m.random.Intn(12) {
	case 0:
		lines = append(lines[:at:at], lines[at+1:]...)
	case 1:
		lines = append(lines[:at+1:at+1], lines[at:]...)
	case 2:
		other := m.random.Intn(len(lines))
		lines[at], lines[other] = lines[other], lines[at]
	case 3:
		lines[at] = m.one(" ", "  ") + lines[at]
	case 4:
		lines[at] = strings.TrimPrefix(lines[at], m.one(" ", "  "))
	case 5:
		lines[at] = strings.Replace(lines[at], ": ", m.one(":", " : ", ":  ", ":\t", "", " "), 1)
	case 6:
		return strings.ReplaceAll(text, "\n", m.one("\r\n", "\r", "\n\n", " \n"))
	case 7:
		lines[at] = m.one("# comment\n", "\n", "---\n", "...\n", "\t\n", "   \n", "- \n", "x: y\n", "  # comment\n") + lines[at]
	case 8:
		lines[at] = strings.Replace(lines[at], "- ", m.one("-", "-  ", "-\t", "- - ", ""), 1)
	default:
		position := m.random.Intn(len(text) + 1)
		insert := m.one("\t", "#", " #", "'", "\"", "{", "}", "[", "]", ",", "&a ", "*a", "!", "|", ">", "%", "@", "`", "- ", "? ", ": ", ":", "\u00a0", "\u2028", "\r", "\x00", "\x7f", "é", "\xff", "\u0085", " ", "\n", "x", "1", "~", "\\", "!!str ", "!x ", "<<: ")
		return text[:position] + insert + text[position:]
	}
	return strings.Join(lines, "")
}
