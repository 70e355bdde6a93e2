// judge says of each history that it is given whether its appends are linearizable, by Porcupine: another program, in
// another language, than the checker of pghc. One line of JSON a file: {"file", "linearizable": true|false, "why"}.
//
// The model: an append-only chain, whose state is its last entry. An acknowledged append is the next entry; one whose
// fate no client learned happens if the chains at the end have an entry that is nobody else's; one that failed for
// certain never happens. Each region's chain at the end is a read of all of it. Reads meanwhile may be old, so they are
// judged by what each client has seen: a second model, one partition a client.
package main

import (
	"bufio"
	"compress/gzip"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"regexp"
	"sort"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

type row struct {
	ZkID   int64  `json:"zk_id"`
	NodeID string `json:"node_id"`
	Hash   string `json:"hash"`
}

type request struct {
	id   string
	zkID int64
}

func (r *request) UnmarshalJSON(data []byte) error {
	return json.Unmarshal(data, &[]any{&r.id, &r.zkID})
}

type value struct {
	row
	Position  int64     `json:"position"`
	Watermark int64     `json:"watermark"`
	Rows      []row     `json:"rows"`
	Requests  []request `json:"requests"`
	CaughtUp  *bool     `json:"caught_up"`
}

type event struct {
	Time      int64           `json:"time"`
	Process   string          `json:"process"`
	Region    string          `json:"region"`
	Type      string          `json:"type"`
	Op        string          `json:"op"`
	RequestID string          `json:"request_id"`
	Raw       json.RawMessage `json:"value"`
	value     value
}

// What became of one request, over all its attempts.
type appendOp struct {
	process              string
	invoked, answered    int64
	invocations, refused int
	row                  *row
}

type chain struct {
	region   string
	rows     []row
	requests []request
	table    bool
	lagging  bool
}

type history struct {
	events  []event
	appends map[string]*appendOp
	chains  map[string]*chain
	// The highest entry that was read before the first append: those up to there are of an earlier run.
	inherited int64
}

const never = math.MaxInt64

var nodeID = regexp.MustCompile(`^[a-z][a-z0-9-]{0,30}$`)

func (r row) follows(before row) bool {
	sum := md5.Sum([]byte(fmt.Sprint(r.ZkID) + r.NodeID + before.Hash))
	return r.ZkID == before.ZkID+1 && nodeID.MatchString(r.NodeID) && hex.EncodeToString(sum[:]) == r.Hash
}

func read(path string) (*history, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var in io.Reader = file
	if strings.HasSuffix(path, ".gz") {
		if in, err = gzip.NewReader(file); err != nil {
			return nil, err
		}
	}
	h := &history{appends: map[string]*appendOp{}, chains: map[string]*chain{}}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return nil, err
		}
		if (e.Type == "ok" || e.Type == "final") && len(e.Raw) > 0 {
			if e.Raw[0] == '[' {
				err = json.Unmarshal(e.Raw, &e.value.Rows)
				if n := len(e.value.Rows); n > 0 {
					e.value.Watermark = e.value.Rows[n-1].ZkID
				}
			} else {
				err = json.Unmarshal(e.Raw, &e.value)
			}
			if err != nil {
				return nil, err
			}
		}
		h.events = append(h.events, e)
		if err := h.hear(e); err != nil {
			return nil, err
		}
	}
	return h, lines.Err()
}

func (h *history) hear(e event) error {
	if e.Type == "final" {
		c := h.chains[e.Region]
		if c == nil {
			c = &chain{region: e.Region}
			h.chains[e.Region] = c
		}
		c.rows = append(c.rows, e.value.Rows...)
		c.requests = append(c.requests, e.value.Requests...)
		c.table = c.table || e.value.Requests != nil
		c.lagging = c.lagging || e.value.CaughtUp != nil && !*e.value.CaughtUp
		return nil
	}
	if e.Op == "read" {
		if e.Type == "ok" && len(h.appends) == 0 && e.value.Watermark > h.inherited {
			h.inherited = e.value.Watermark
		}
		return nil
	}
	a := h.appends[e.RequestID]
	if a == nil {
		a = &appendOp{process: e.Process, invoked: never, answered: never}
		h.appends[e.RequestID] = a
	}
	switch e.Type {
	case "invoke":
		a.invocations++
		a.invoked = min(a.invoked, e.Time)
	case "fail":
		a.refused++
	case "ok":
		if e.Time < a.invoked {
			return fmt.Errorf("%s is answered at %d what is asked at %d", e.Process, e.Time, a.invoked)
		}
		answered := e.value.row
		if a.row != nil && *a.row != answered {
			return fmt.Errorf("%s was acknowledged as entry %d and as entry %d", e.RequestID, a.row.ZkID, answered.ZkID)
		}
		a.row, a.answered = &answered, min(a.answered, e.Time)
	}
	return nil
}

// An operation of the first model. A nil row is a chain at the end.
type step struct {
	row  *row
	last row
}

var chainModel = porcupine.Model{
	Init: func() any { return row{} },
	Step: func(state, input, _ any) (bool, any) {
		last, s := state.(row), input.(step)
		if s.row == nil {
			return s.last == last, last
		}
		return s.row.follows(last), *s.row
	},
	Equal: func(one, other any) bool { return one == other },
}

// An operation of the second: what a client was told of the chain, and what it had handed over as seen.
type told struct{ watermark, position int64 }

var sessionModel = porcupine.Model{
	Init: func() any { return int64(0) },
	Step: func(state, input, _ any) (bool, any) {
		t, seen := input.(told), state.(int64)
		return t.watermark >= seen && t.watermark >= t.position, max(t.watermark, seen)
	},
	Equal: func(one, other any) bool { return one == other },
}

func (h *history) judge() error {
	longest, err := h.longest()
	if err != nil {
		return err
	}
	happened, err := h.happened(longest)
	if err != nil {
		return err
	}
	var operations []porcupine.Operation
	var end int64
	client := 0
	add := func(input any, call, answered int64) {
		operations = append(operations, porcupine.Operation{ClientId: client, Input: input, Call: call, Return: answered})
		client++
	}
	for _, e := range h.events {
		end = max(end, e.Time)
	}
	init := row{}
	if h.inherited > 0 && h.inherited <= int64(len(longest)) {
		init = longest[h.inherited-1]
	}
	for _, a := range happened {
		if a.row.ZkID > init.ZkID {
			add(step{row: a.row}, a.invoked, min(a.answered, end))
		}
	}
	for _, c := range h.chains {
		if !c.lagging {
			last := row{}
			if len(c.rows) > 0 {
				last = c.rows[len(c.rows)-1]
			}
			add(step{last: last}, end+1, end+2)
		}
	}
	model := chainModel
	model.Init = func() any { return init }
	if err := verdict(model, operations, "its appends are not linearizable"); err != nil {
		return err
	}
	return h.judgeSessions(longest)
}

func verdict(model porcupine.Model, operations []porcupine.Operation, what string) error {
	switch porcupine.CheckOperationsTimeout(model, operations, 20*time.Second) {
	case porcupine.Illegal:
		return errors.New(what)
	case porcupine.Unknown:
		panic("no answer in 20 seconds")
	}
	return nil
}

// The longest chain at the end. Each must be one: numbered from 1 without a gap, every hash that of its entry.
func (h *history) longest() ([]row, error) {
	var longest []row
	for _, c := range h.chains {
		before := row{}
		for _, r := range c.rows {
			if !c.lagging && !r.follows(before) {
				return nil, fmt.Errorf("%s: entry %d does not follow entry %d", c.region, r.ZkID, before.ZkID)
			}
			before = r
		}
		if !c.lagging && len(c.rows) > len(longest) {
			longest = c.rows
		}
	}
	return longest, nil
}

// All appends that happened, those without an answer as the chain at the end and its table of requests say.
func (h *history) happened(longest []row) ([]*appendOp, error) {
	var happened []*appendOp
	acknowledged := map[int64]bool{}
	var open []*appendOp
	for _, a := range h.appends {
		if a.row != nil {
			happened = append(happened, a)
			acknowledged[a.row.ZkID] = true
		} else if a.invocations > a.refused {
			open = append(open, a)
		}
	}
	tabled := false
	for _, c := range h.chains {
		if c.table {
			tabled = true
			if err := h.compare(c); err != nil {
				return nil, err
			}
		}
	}
	if tabled {
		became := map[string]int64{}
		for _, c := range h.chains {
			for _, r := range c.requests {
				became[r.id] = r.zkID
			}
		}
		for id, a := range h.appends {
			if zkID := became[id]; a.row == nil && zkID > 0 && zkID <= int64(len(longest)) {
				a.row = &longest[zkID-1]
				happened = append(happened, a)
			}
		}
		return happened, nil
	}
	// Whose the others are is not known: those that were asked for first may have been first.
	sort.Slice(open, func(i, j int) bool { return open[i].invoked < open[j].invoked })
	for i := h.inherited; i < int64(len(longest)); i++ {
		if acknowledged[longest[i].ZkID] {
			continue
		}
		if len(open) == 0 {
			return nil, fmt.Errorf("no append accounts for entry %d", longest[i].ZkID)
		}
		open[0].row = &longest[i]
		happened, open = append(happened, open[0]), open[1:]
	}
	return happened, nil
}

// A region's table of requests against what clients were told.
func (h *history) compare(c *chain) error {
	places, ids := map[int64]string{}, map[string]int64{}
	for _, r := range c.requests {
		if other, taken := places[r.zkID]; taken {
			return fmt.Errorf("%s: entry %d is of %s and of %s", c.region, r.zkID, other, r.id)
		}
		if other, twice := ids[r.id]; twice {
			return fmt.Errorf("%s: %s is entry %d and entry %d", c.region, r.id, other, r.zkID)
		}
		places[r.zkID], ids[r.id] = r.id, r.zkID
		a := h.appends[r.id]
		switch {
		case a == nil && r.zkID > h.inherited:
			return fmt.Errorf("%s: entry %d is of %s, which nobody asked for", c.region, r.zkID, r.id)
		case a != nil && a.row != nil && a.row.ZkID != r.zkID:
			return fmt.Errorf("%s: %s is entry %d, acknowledged as entry %d", c.region, r.id, r.zkID, a.row.ZkID)
		case a != nil && a.row == nil && a.invocations <= a.refused:
			return fmt.Errorf("%s: %s failed for certain and is entry %d", c.region, r.id, r.zkID)
		}
	}
	for _, r := range c.rows {
		if places[r.ZkID] == "" && r.ZkID > h.inherited {
			return fmt.Errorf("%s: entry %d is nobody's", c.region, r.ZkID)
		}
	}
	return nil
}

func (h *history) judgeSessions(longest []row) error {
	sessions, asked := map[string][]porcupine.Operation{}, map[string]int64{}
	for n, e := range h.events { // in a client's order, which is that of its lines
		now, key := int64(n), e.Process+" "+e.Op+" "+e.RequestID
		if e.Type == "invoke" {
			asked[key] = now
		}
		if e.Type != "ok" {
			continue
		}
		t := told{e.value.ZkID, 0}
		if e.Op == "read" {
			t = told{e.value.Watermark, e.value.Position}
			below := int64(0)
			for _, r := range e.value.Rows {
				if below > 0 && r.ZkID != below+1 || r.ZkID < 1 || r.ZkID > int64(len(longest)) || longest[r.ZkID-1] != r {
					return fmt.Errorf("%s read an entry %d that does not stand there", e.Process, r.ZkID)
				}
				below = r.ZkID
			}
			if below > 0 && below != t.watermark {
				return fmt.Errorf("%s read up to %d, not to %d", e.Process, below, t.watermark)
			}
		}
		sessions[e.Process] = append(sessions[e.Process], porcupine.Operation{Input: t, Call: asked[key], Return: now})
	}
	for process, operations := range sessions {
		if err := verdict(sessionModel, operations, process+" went back in time"); err != nil {
			return err
		}
	}
	return nil
}

func main() {
	for _, path := range os.Args[1:] {
		h, err := read(path)
		if err == nil {
			err = h.judge()
		}
		said := map[string]any{"file": path, "linearizable": err == nil, "why": ""}
		if err != nil {
			said["why"] = err.Error()
		}
		line, _ := json.Marshal(said)
		fmt.Println(string(line))
	}
}
