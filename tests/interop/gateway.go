// Command interop is Systems Manager with its message gateway, as far as a port forwarding session needs them, in front of
// the official agent's own session code. It belongs into a folder of the agent's sources; README.md beside it says how.
//
// Clients use plain HTTP at the address that it prints; the agent's side insists on TLS, and gets a certificate made at the
// start. Between the two, messages can be lost, sent twice, delayed and reordered, and clients can be cut off.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"log"
	"math/big"
	mathrand "math/rand"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/aws/amazon-ssm-agent/agent/appconfig"
	"github.com/aws/amazon-ssm-agent/agent/context"
	"github.com/aws/amazon-ssm-agent/agent/contracts"
	"github.com/aws/amazon-ssm-agent/agent/framework/processor/executer/iohandler"
	logmocks "github.com/aws/amazon-ssm-agent/agent/mocks/log"
	"github.com/aws/amazon-ssm-agent/agent/session/plugins/port"
	"github.com/aws/amazon-ssm-agent/agent/session/plugins/sessionplugin"
	"github.com/aws/amazon-ssm-agent/agent/task"
	identitymocks "github.com/aws/amazon-ssm-agent/common/identity/mocks"
	"github.com/aws/aws-sdk-go/aws/credentials"
	"github.com/gorilla/websocket"
)

const (
	region     = "us-east-1"
	agentToken = "agent"
	channels   = "/v1/data-channel/"
)

var (
	loss   = flag.Float64("loss", 0, "part of the messages that is lost, each way")
	twice  = flag.Float64("twice", 0, "part of the messages that comes twice, each way")
	delay  = flag.Duration("delay", 0, "how long messages take, each way")
	jitter = flag.Duration("jitter", 0, "how much longer some take, so that they overtake each other")
	cut    = flag.Duration("cut", 0, "break each connection of a client after this time")
)

// A session and the connections of its two ends.
type session struct {
	id            string
	client, agent end
	cancel        *task.ChanneledCancelFlag
}

// One end of a session; without a connection, what is sent to it is lost.
type end struct {
	mutex      sync.Mutex
	connection *websocket.Conn
}

func (e *end) set(connection *websocket.Conn) {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	e.connection = connection
}

// Forgets a connection, unless there is another already.
func (e *end) clear(connection *websocket.Conn) {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	if e.connection == connection {
		e.connection = nil
	}
	connection.Close()
}

func (e *end) send(kind int, message []byte) {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	if e.connection != nil {
		e.connection.WriteMessage(kind, message)
	}
}

// Moves messages from a connection to the other end until the connection is lost.
func relay(from *websocket.Conn, to *end) {
	// With the same delay for all, one after the other, they stay in order.
	queue := make(chan func(), 1<<16)
	defer close(queue)
	go func() {
		for deliver := range queue {
			deliver()
		}
	}()
	for {
		kind, message, err := from.ReadMessage()
		if err != nil {
			return
		}
		// What an agent says of its state is for the gateway alone.
		if len(message) > 36 && strings.HasPrefix(string(message[4:36]), "agent_session_state") {
			continue
		}
		if mathrand.Float64() < *loss {
			continue
		}
		copies := 1
		if mathrand.Float64() < *twice {
			copies = 2
		}
		for ; copies > 0; copies-- {
			switch {
			case *jitter > 0:
				late := *delay + time.Duration(mathrand.Int63n(int64(*jitter)))
				time.AfterFunc(late, func() { to.send(kind, message) })
			case *delay > 0:
				at := time.Now().Add(*delay)
				queue <- func() {
					time.Sleep(time.Until(at))
					to.send(kind, message)
				}
			default:
				to.send(kind, message)
			}
		}
	}
}

type service struct {
	// Where clients and agents find it: host and port.
	forClients, forAgents string
	mutex                 sync.Mutex
	sessions              map[string]*session
	started               int
	calls                 map[string]int
}

func (s *service) find(id string) *session {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.sessions[id]
}

// Answers calls of Systems Manager, unsigned ones too.
func (s *service) answerCall(response http.ResponseWriter, request *http.Request) {
	var input struct {
		SessionId  string
		Parameters map[string][]string
	}
	if err := json.NewDecoder(request.Body).Decode(&input); err != nil && err != io.EOF {
		http.Error(response, err.Error(), http.StatusBadRequest)
		return
	}
	_, action, _ := strings.Cut(request.Header.Get("X-Amz-Target"), ".")
	response.Header().Set("Content-Type", "application/x-amz-json-1.1")
	fail := func(code string) {
		response.WriteHeader(http.StatusBadRequest)
		json.NewEncoder(response).Encode(map[string]string{"__type": code, "message": input.SessionId})
	}
	s.mutex.Lock()
	s.calls[action]++
	s.mutex.Unlock()
	switch action {
	case "StartSession":
		session := s.start(input.Parameters)
		s.admit(response, session)
	case "ResumeSession":
		if session := s.find(input.SessionId); session != nil {
			s.admit(response, session)
		} else {
			fail("DoesNotExistException")
		}
	case "TerminateSession":
		if session := s.find(input.SessionId); session != nil {
			session.cancel.Set(task.Canceled)
		}
		json.NewEncoder(response).Encode(map[string]string{"SessionId": input.SessionId})
	default:
		fail("AccessDeniedException")
	}
}

func (s *service) admit(response http.ResponseWriter, session *session) {
	json.NewEncoder(response).Encode(map[string]string{
		"SessionId":  session.id,
		"TokenValue": "client",
		"StreamUrl":  "ws://" + s.forClients + channels + session.id + "?role=publish_subscribe",
	})
}

func (s *service) start(parameters map[string][]string) *session {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.started++
	// Agents name a socket by it, which is to be another one each time.
	id := fmt.Sprintf("interop-%x-%d", time.Now().UnixNano(), s.started)
	session := &session{id: id, cancel: task.NewChanneledCancelFlag()}
	s.sessions[id] = session
	properties := map[string]interface{}{"type": "LocalPortForwarding"}
	for name, values := range parameters {
		properties[name] = strings.Join(values, ",")
	}
	go s.runAgent(session, properties)
	return session
}

// Runs the agent's port plugin until the session ends, as the agent's session worker does.
func (s *service) runAgent(session *session, properties map[string]interface{}) {
	config := appconfig.SsmagentConfig{}
	config.Mgs.Endpoint = "https://" + s.forAgents
	config.Mgs.Region = region
	config.Mgs.StopTimeoutMillis = 20_000
	ctx := context.Default(logmocks.NewMockLog(), config, identitymocks.NewDefaultMockAgentIdentity())
	plugin, err := sessionplugin.NewPlugin(ctx, port.NewPlugin)
	if err != nil {
		log.Fatal(err)
	}
	output := iohandler.NewDefaultIOHandler(ctx, contracts.IOConfiguration{})
	plugin.Execute(contracts.Configuration{
		PluginName: appconfig.PluginNamePort,
		Properties: properties,
		SessionId:  session.id,
		ClientId:   "interop",
	}, session.cancel, output)
	log.Printf("agent of %s: %v, code %d %s", session.id, output.GetStatus(), output.GetExitCode(), output.GetOutput())
	s.mutex.Lock()
	delete(s.sessions, session.id)
	s.mutex.Unlock()
	session.client.mutex.Lock()
	defer session.client.mutex.Unlock()
	if session.client.connection != nil {
		session.client.connection.Close()
	}
}

// Opens data channels, of clients and of agents.
func (s *service) openChannel(response http.ResponseWriter, request *http.Request) {
	if request.Method == http.MethodPost {
		response.WriteHeader(http.StatusCreated)
		fmt.Fprintf(response, "<CreateDataChannelResponse><TokenValue>%s</TokenValue></CreateDataChannelResponse>", agentToken)
		return
	}
	session := s.find(strings.TrimPrefix(request.URL.Path, channels))
	if session == nil {
		http.NotFound(response, request)
		return
	}
	upgrader := websocket.Upgrader{}
	connection, err := upgrader.Upgrade(response, request, nil)
	if err != nil {
		return
	}
	var opening struct{ TokenValue string }
	if err := connection.ReadJSON(&opening); err != nil {
		connection.Close()
		return
	}
	here, there := &session.client, &session.agent
	if opening.TokenValue == agentToken {
		here, there = there, here
	} else if *cut > 0 {
		defer time.AfterFunc(*cut, func() { connection.UnderlyingConn().Close() }).Stop()
	}
	here.set(connection)
	defer here.clear(connection)
	relay(connection, there)
}

func (s *service) countCalls(response http.ResponseWriter, _ *http.Request) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	json.NewEncoder(response).Encode(s.calls)
}

func listen() net.Listener {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	return listener
}

// Makes a certificate for loopback, and has the agent trust it. Returns the file with it as well.
func certificate() (tls.Certificate, string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	template := x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "interop"},
		NotAfter:              time.Now().Add(24 * time.Hour),
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
	if err != nil {
		log.Fatal(err)
	}
	file, err := os.CreateTemp("", "interop-*.pem")
	if err != nil {
		log.Fatal(err)
	}
	defer file.Close()
	if err := pem.Encode(file, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
		log.Fatal(err)
	}
	os.Setenv("SSL_CERT_FILE", file.Name())
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, file.Name()
}

func main() {
	flag.Parse()
	// No agent of this process is to look for an instance's metadata.
	os.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	identitymocks.MockCredentials = credentials.NewStaticCredentials("AKIDEXAMPLE", "secret", "")

	identity, file := certificate()
	forClients, forAgents := listen(), tls.NewListener(listen(), &tls.Config{Certificates: []tls.Certificate{identity}})
	s := &service{
		forClients: forClients.Addr().String(),
		forAgents:  forAgents.Addr().String(),
		sessions:   map[string]*session{},
		calls:      map[string]int{},
	}
	http.HandleFunc("/", s.answerCall)
	http.HandleFunc("/calls", s.countCalls)
	http.HandleFunc(channels, s.openChannel)
	fmt.Println(s.forClients)
	// The agent's log goes to stdout, a line for each message.
	if null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0); err == nil {
		os.Stdout = null
	}
	go func() { log.Fatal(http.Serve(forAgents, nil)) }()
	go func() { log.Fatal(http.Serve(forClients, nil)) }()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	<-stop
	os.Remove(file)
}
