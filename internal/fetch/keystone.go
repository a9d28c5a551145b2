package fetch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/token"

	"github.com/tarn-storage/tarn/errs"
)

const (
	maxClouds  = 64 << 10
	maxRecord  = 1 << 20
	maxCatalog = 4 << 20
	renewEarly = time.Minute
)

// Secret is text that no message, log or encoding shows.
type Secret string

const hidden = "[secret]"

// Format hides the secret whatever the verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, hidden) }

// String hides the secret.
func (Secret) String() string { return hidden }

// MarshalText hides the secret in JSON, YAML and logs.
func (Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// Cloud says how an OpenStack cloud is reached and by whom, in the words of
// clouds.yaml. The zero Cloud asks without credentials.
//
// A token goes only to Keystone and to an image endpoint that Keystone's
// catalogue or ImageEndpoint names, never to one that only a source names.
type Cloud struct {
	AuthType      string `yaml:"auth_type"` // "" is guessed from Auth; none, password, token, v3applicationcredential
	Auth          Auth   `yaml:"auth"`
	Region        string `yaml:"region_name"`
	Interface     string `yaml:"interface"`               // of the catalogue: public (the default), internal, admin
	ImageEndpoint string `yaml:"image_endpoint_override"` // before the catalogue's
	Verify        *bool  `yaml:"verify"`                  // false is refused
	CACert        string `yaml:"cacert"`                  // refused: Config.Roots has them
}

// Auth is one way to get a token from Keystone v3: Token, an application
// credential, or a user's password with a project.
type Auth struct {
	URL               string `yaml:"auth_url"`
	Token             Secret `yaml:"token"`
	CredentialID      string `yaml:"application_credential_id"`
	CredentialName    string `yaml:"application_credential_name"` // with a user
	CredentialSecret  Secret `yaml:"application_credential_secret"`
	Username          string `yaml:"username"`
	UserID            string `yaml:"user_id"`
	UserDomain        string `yaml:"user_domain_name"`
	UserDomainID      string `yaml:"user_domain_id"`
	Password          Secret `yaml:"password"`
	Project           string `yaml:"project_name"`
	ProjectID         string `yaml:"project_id"`
	ProjectDomain     string `yaml:"project_domain_name"`
	ProjectDomainID   string `yaml:"project_domain_id"`
	DefaultDomainName string `yaml:"domain_name"` // of user and project, where they name none
	DefaultDomainID   string `yaml:"domain_id"`
}

// ParseClouds reads a clouds.yaml of at most 64 KiB and returns its clouds by
// name. Fields that other services use are left out. Aliases are refused: a few
// lines of them stand for more than any memory holds.
func ParseClouds(b []byte) (map[string]Cloud, error) {
	bad := func(format string, args ...any) error {
		return errs.New(errs.Invalid, op, "clouds.yaml", format, args...)
	}
	if len(b) > maxClouds {
		return nil, bad("it has more than %d bytes", maxClouds)
	}
	if slices.ContainsFunc(lexer.Tokenize(string(b)), func(t *token.Token) bool { return t.Type == token.AliasType }) {
		return nil, errs.New(errs.Invalid, op, "clouds.yaml", "it has YAML aliases (*NAME), which are not read").WithHint("write out what they stand for")
	}
	var file struct {
		Clouds map[string]Cloud `yaml:"clouds"`
	}
	err := yaml.UnmarshalWithOptions(b, &file, yaml.CustomUnmarshaler(text[string]), yaml.CustomUnmarshaler(text[Secret]))
	if errors.Is(err, errNoText) {
		return nil, errs.New(errs.Invalid, op, "clouds.yaml", "%v", errNoText).WithHint("put names, ids and secrets that look like numbers into quotes")
	}
	if err != nil {
		// The text of a parser may quote a password.
		var at yaml.Error
		if errors.As(err, &at) && at.GetToken() != nil {
			return nil, bad("line %d is not what clouds.yaml has there", at.GetToken().Position.Line)
		}
		return nil, bad("it is not YAML with clouds")
	}
	if len(file.Clouds) == 0 {
		return nil, bad("it names no cloud")
	}
	for name, c := range file.Clouds {
		if err := c.check(); err != nil {
			return nil, errs.Wrap(err, op, "clouds.yaml: cloud "+name)
		}
	}
	return file.Clouds, nil
}

var errNoText = errors.New("a number, truth value or list stands where there must be text")

// text takes a value that is text in YAML. An id of digits would otherwise
// come out as another one, 0123 as 83.
func text[T ~string](to *T, b []byte) error {
	var v any
	if err := yaml.Unmarshal(b, &v); err != nil {
		return err
	}
	switch v := v.(type) {
	case nil:
		*to = ""
	case string:
		*to = T(v)
	default:
		return errNoText
	}
	return nil
}

func (c Cloud) check() error {
	switch {
	case c.Verify != nil && !*c.Verify:
		return fail(errs.Invalid, "verify: false is not accepted").WithHint("name the authority to trust in the daemon's configuration")
	case c.CACert != "":
		return fail(errs.Invalid, "cacert is a file that is not read").WithHint("name the authority to trust in the daemon's configuration")
	case c.anonymous():
		return nil
	}
	_, err := c.method()
	if err == nil && c.Auth.URL == "" && (c.Auth.Token == "" || c.ImageEndpoint == "") {
		return fail(errs.Invalid, "auth_url is missing: where Keystone answers")
	}
	return err
}

func (c Cloud) anonymous() bool { return c.AuthType == "none" || c.Auth == (Auth{}) }

// method says which credentials are used: those that AuthType names, else the
// most special that are there.
func (c Cloud) method() (string, error) {
	a, m := c.Auth, strings.TrimPrefix(c.AuthType, "v3")
	if m == "" {
		switch {
		case a.Token != "":
			m = "token"
		case a.CredentialSecret != "":
			m = "applicationcredential"
		default:
			m = "password"
		}
	}
	user := a.UserID != "" || a.Username != ""
	switch {
	case m == "token" && a.Token == "":
		return "", fail(errs.Invalid, "auth.token is missing")
	case m == "applicationcredential" && (a.CredentialSecret == "" || a.CredentialID == "" && (a.CredentialName == "" || !user)):
		return "", fail(errs.Invalid, "the application credential is incomplete").
			WithHint("it needs application_credential_secret and application_credential_id, or application_credential_name and the user")
	case m == "password" && (a.Password == "" || !user):
		return "", fail(errs.Invalid, "the user or the password is missing")
	case m != "token" && m != "applicationcredential" && m != "password":
		return "", fail(errs.Unsupported, "auth_type %q is not known", c.AuthType).
			WithHint("password, v3applicationcredential, token and none are")
	}
	return m, nil
}

// session is a cloud that was asked for a token and its image endpoints.
type session struct {
	cfg       Config
	cloud     Cloud
	token     Secret
	expires   time.Time // zero: unknown
	endpoints []*url.URL
}

// login gets a token, and the endpoints where it may go.
func (s *session) login(ctx context.Context) error {
	if err := s.cloud.check(); err != nil {
		return err
	}
	s.endpoints = nil
	if e := s.cloud.ImageEndpoint; e != "" {
		u, err := parseURL(e)
		if err != nil {
			return fail(errs.Invalid, "image_endpoint_override is not a URL with a scheme and a host")
		}
		s.endpoints = append(s.endpoints, u)
	}
	if s.cloud.anonymous() {
		return nil
	}
	method, err := s.cloud.method()
	if err != nil {
		return err
	}
	if method == "token" {
		s.token = s.cloud.Auth.Token
		if len(s.endpoints) > 0 {
			return nil
		}
		return s.keystone(ctx, request{method: http.MethodGet, private: s.header()}, "auth/catalog")
	}
	body, err := json.Marshal(map[string]any{"auth": s.cloud.Auth.identity(method)})
	if err != nil {
		return err
	}
	return s.keystone(ctx, request{method: http.MethodPost, header: http.Header{"Content-Type": {"application/json"}}, body: body}, "auth/tokens")
}

// identity is the request of Keystone's API v3, "Authentication and token
// management".
func (a Auth) identity(method string) map[string]any {
	type object = map[string]any
	named := func(id, name, domainID, domain string) object {
		if id != "" {
			return object{"id": id}
		}
		switch {
		case domainID != "":
			return object{"name": name, "domain": object{"id": domainID}}
		case domain != "":
			return object{"name": name, "domain": object{"name": domain}}
		case a.DefaultDomainID != "":
			return object{"name": name, "domain": object{"id": a.DefaultDomainID}}
		case a.DefaultDomainName != "":
			return object{"name": name, "domain": object{"name": a.DefaultDomainName}}
		}
		return object{"name": name, "domain": object{"id": "default"}}
	}
	user := named(a.UserID, a.Username, a.UserDomainID, a.UserDomain)
	if method == "applicationcredential" {
		c := object{"secret": string(a.CredentialSecret), "id": a.CredentialID}
		if a.CredentialID == "" {
			c = object{"secret": string(a.CredentialSecret), "name": a.CredentialName, "user": user}
		}
		return object{"identity": object{"methods": []string{"application_credential"}, "application_credential": c}}
	}
	user["password"] = string(a.Password)
	out := object{"identity": object{"methods": []string{"password"}, "password": object{"user": user}}}
	if a.ProjectID != "" || a.Project != "" {
		out["scope"] = object{"project": named(a.ProjectID, a.Project, a.ProjectDomainID, a.ProjectDomain)}
	}
	return out
}

// keystone asks Keystone and takes token and catalogue from the answer.
func (s *session) keystone(ctx context.Context, r request, path string) error {
	base, err := parseURL(s.cloud.Auth.URL)
	if err != nil {
		return fail(errs.Invalid, "auth_url is not a URL with a scheme and a host")
	}
	base.User = nil
	r.url = join(base, "v3", path)
	if strings.HasSuffix(strings.TrimSuffix(base.Path, "/"), "/v3") {
		r.url = join(base, path)
	}
	type catalog []struct {
		Type      string
		Endpoints []struct {
			URL, Interface, Region string
			RegionID               string `json:"region_id"`
		}
	}
	var answer struct {
		Catalog catalog // of GET auth/catalog
		Token   struct {
			Catalog catalog
			Expires time.Time `json:"expires_at"`
		}
	}
	header, err := s.cfg.call(ctx, r, maxCatalog, &answer)
	if err != nil {
		return err
	}
	if r.method == http.MethodPost {
		s.token, s.expires = Secret(header.Get("X-Subject-Token")), answer.Token.Expires
		if s.token == "" {
			return fail(errs.Unavailable, "Keystone at %s gave no token", base.Host)
		}
	}
	face := s.cloud.Interface
	if face == "" {
		face = "public"
	}
	face = strings.TrimSuffix(face, "URL")
	for _, service := range append(answer.Catalog, answer.Token.Catalog...) {
		if service.Type != "image" {
			continue
		}
		for _, e := range service.Endpoints {
			here := s.cloud.Region == "" || e.Region == s.cloud.Region || e.RegionID == s.cloud.Region
			if u, err := parseURL(e.URL); err == nil && e.Interface == face && here {
				s.endpoints = append(s.endpoints, u)
			}
		}
	}
	return nil
}

// header returns the token's header.
func (s *session) header() http.Header {
	if s.token == "" {
		return nil
	}
	return http.Header{"X-Auth-Token": {string(s.token)}}
}

// renew returns the token's header, of a new token when again is set or the
// last one is about to expire.
func (s *session) renew(ctx context.Context, again bool) (http.Header, error) {
	if s.token != "" && (again || !s.expires.IsZero() && time.Until(s.expires) < renewEarly) {
		if err := s.login(ctx); err != nil {
			return nil, err
		}
	}
	return s.header(), nil
}

// call makes one call of an API and decodes the answer, of at most limit
// bytes, into out.
func (c *Config) call(ctx context.Context, r request, limit int64, out any) (http.Header, error) {
	limited, cancel := context.WithTimeout(ctx, 2*c.Stall)
	defer cancel()
	rep, err := c.ask(limited, r)
	if err != nil {
		return nil, c.late(ctx, limited, r.url, err)
	}
	defer rep.Close()
	if rep.StatusCode != http.StatusOK && rep.StatusCode != http.StatusCreated {
		return nil, rep.status()
	}
	if enc := rep.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return nil, fail(errs.Unavailable, "%s answers in an encoding that was not asked for", rep.from)
	}
	b, err := io.ReadAll(io.LimitReader(rep, limit+1))
	switch {
	case err != nil:
		return nil, c.late(ctx, limited, r.url, fail(errs.Unavailable, "the answer of %s ends early: %w", rep.from, err))
	case int64(len(b)) > limit:
		return nil, fail(errs.Unavailable, "the answer of %s has more than %d bytes", rep.from, limit)
	case json.Unmarshal(b, out) != nil:
		return nil, fail(errs.Unavailable, "the answer of %s is not what this API answers", rep.from)
	}
	return rep.Header, nil
}
