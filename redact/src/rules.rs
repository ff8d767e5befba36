//! What is to be redacted: plain data, as a user writes it.

/// Rules, in order: of two that name the same thing, the first decides what becomes of it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rules {
    /// At most 256.
    pub rules: Vec<Rule>,
    /// What redaction may cost.
    pub limits: Limits,
}

/// One rule.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rule {
    /// As counts name it.
    pub name: String,
    /// What it finds.
    pub what: What,
    /// What becomes of it.
    pub action: Action,
}

/// What a rule finds. Names are compared without regard to case, `-` and `_`, after all encoding is taken off; `*` is every name. A name
/// like `user[password]` or `user.password` is also found by its last part.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum What {
    /// A header or trailer field.
    Header(String),
    /// A cookie, in `Cookie` and `Set-Cookie`.
    Cookie(String),
    /// A parameter of a query or fragment, also of a URL within a text.
    Query(String),
    /// A field of a form (`application/x-www-form-urlencoded`, `multipart/form-data`).
    Form(String),
    /// A parameter of a query, a field of a form or a member of any JSON object.
    Field(String),
    /// A value in a JSON body, by a path: `$.a.b[*].c`, `$.*`, `$.a[0]`, `$['a b']`, `$..name`. Names in it are compared exactly.
    Json(String),
    /// What a regular expression matches in texts and values; its first group, if it has one, else the whole match.
    Regex(String),
    /// User name and password of a URL, wherever one stands.
    Userinfo,
    /// What looks like a secret of a kind.
    Detector(Detector),
}

/// What becomes of what is found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// It is taken away: a header field as a whole; of a cookie, a parameter or a form's field the value; a JSON value becomes `null`; of a
    /// text, the part that was found.
    Drop,
    /// [`MASK`](crate::MASK) stands in its place, however long it was.
    Mask,
    /// A name stands in its place that is the same for the same value under the same key, and from which nobody without the key can tell
    /// the value: `p-` and 24 letters, of HMAC-SHA-256.
    Pseudonym,
}

/// A kind of secret that is known by its shape.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Detector {
    /// A payment card's number: 13 to 19 digits, perhaps with single blanks or dashes between, of a known issuer, with a right check digit
    /// (ISO/IEC 7812-1).
    PaymentCard,
    /// A JSON Web Token (RFC 7519), signed or encrypted.
    Jwt,
    /// An e-mail address.
    Email,
    /// AWS access key ids, and secret access keys in the same text.
    AwsKey,
    /// API keys of Google Cloud.
    GcpKey,
    /// Keys of Azure storage accounts, and signatures of shared access.
    AzureKey,
    /// Tokens of GitHub.
    GithubToken,
    /// Tokens and webhooks of Slack.
    SlackToken,
    /// Secret keys of Stripe.
    StripeKey,
    /// Private keys in PEM (RFC 7468).
    PrivateKey,
}

impl Detector {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::PaymentCard,
        Self::Jwt,
        Self::Email,
        Self::AwsKey,
        Self::GcpKey,
        Self::AzureKey,
        Self::GithubToken,
        Self::SlackToken,
        Self::StripeKey,
        Self::PrivateKey,
    ];

    /// As documents and counts name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::PaymentCard => "PaymentCard",
            Self::Jwt => "JWT",
            Self::Email => "Email",
            Self::AwsKey => "AWSKey",
            Self::GcpKey => "GCPKey",
            Self::AzureKey => "AzureKey",
            Self::GithubToken => "GitHubToken",
            Self::SlackToken => "SlackToken",
            Self::StripeKey => "StripeKey",
            Self::PrivateKey => "PrivateKey",
        }
    }
}

/// What redaction of one body may cost.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Bytes of a body after its content coding is taken off.
    pub decoded: usize,
    /// How many times longer than what was sent that may be; the first 64 KiB are free.
    pub ratio: usize,
    /// How deep JSON may be nested.
    pub depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { decoded: 8 << 20, ratio: 100, depth: 128 }
    }
}

/// Header fields that carry credentials.
const HEADERS: [&str; 21] = [
    "authorization",
    "proxy-authorization",
    "authentication-info",
    "proxy-authentication-info",
    "x-api-key",
    "api-key",
    "x-auth-token",
    "x-auth-key",
    "x-access-token",
    "x-csrf-token",
    "x-xsrf-token",
    "x-amz-security-token",
    "x-goog-api-key",
    "x-goog-iam-authorization-token",
    "x-functions-key",
    "ocp-apim-subscription-key",
    "private-token",
    "x-vault-token",
    "x-gitlab-token",
    "x-hub-signature-256",
    "x-forwarded-access-token",
];

/// Parameters, fields and members that carry credentials, without `-` and `_`.
const FIELDS: [&str; 37] = [
    "accesskey",
    "accesstoken",
    "apikey",
    "apitoken",
    "assertion",
    "authtoken",
    "awssecretaccesskey",
    "bearertoken",
    "clientassertion",
    "clientsecret",
    "codeverifier",
    "csrftoken",
    "cvc",
    "cvv",
    "idtoken",
    "jwt",
    "newpassword",
    "oldpassword",
    "otp",
    "passphrase",
    "passwd",
    "password",
    "privatekey",
    "pwd",
    "refreshtoken",
    "samlresponse",
    "secret",
    "secretaccesskey",
    "secretkey",
    "securitytoken",
    "sessiontoken",
    "sig",
    "signature",
    "token",
    "xamzcredential",
    "xamzsecuritytoken",
    "xamzsignature",
];

/// Further parameters of queries: as a member of an object, they mostly mean something else.
const PARAMETERS: [&str; 5] = ["authorization", "auth", "code", "xapikey", "xgoogsignature"];

impl Rules {
    /// Drops credentials, by their names: `docs/redaction.md` lists them. No detectors.
    pub fn standard() -> Self {
        let rule = |name: &str, what| Rule { name: name.to_owned(), what, action: Action::Drop };
        let mut rules: Vec<Rule> = HEADERS.iter().map(|name| rule("headers", What::Header((*name).to_owned()))).collect();
        rules.push(rule("cookies", What::Cookie("*".to_owned())));
        rules.extend(FIELDS.iter().map(|name| rule("fields", What::Field((*name).to_owned()))));
        rules.extend(PARAMETERS.iter().map(|name| rule("fields", What::Query((*name).to_owned()))));
        rules.push(rule("userinfo", What::Userinfo));
        Self { rules, limits: Limits::default() }
    }

    /// These rules, and then all detectors with this action.
    #[must_use]
    pub fn with_detectors(mut self, action: Action) -> Self {
        self.rules.extend(Detector::ALL.map(|detector| Rule {
            name: detector.name().to_owned(),
            what: What::Detector(detector),
            action,
        }));
        self
    }
}
