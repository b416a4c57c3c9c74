//! Which requests each released client makes, in which order, and on which connections.
//!
//! Measured by letting the clients ask a server that kept a record, or, for Java, PHP and .NET, read in
//! their source. None of them sends a HEAD, and none pipelines.

use crate::report::push;
use std::time::Duration;

/// How long most released SDKs wait for each answer (botocore, JavaScript, Go v1, Rust: 1 s).
const SDK_TIMEOUT: Duration = Duration::from_secs(1);
/// The SDK for Go v2 waits half as long.
const GO_V2_TIMEOUT: Duration = Duration::from_millis(500);

/// One released client's way of asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub(crate) enum Shape {
    /// boto3, the AWS CLI, aiobotocore: a new token, the list, the credentials, on one connection.
    Boto3,
    /// SDK for JavaScript v3: the same three, each on a connection of its own.
    #[value(name = "js-v3", alias = "js")]
    Js,
    /// SDK for JavaScript v2: the same, and each says that it will close.
    #[value(name = "js-v2")]
    JsV2,
    /// SDK for Go v1: a token kept for six hours; list and credentials on one connection.
    #[value(name = "go-v1")]
    GoV1,
    /// SDK for Go v2: a token kept for five minutes, and half a second of patience.
    #[value(name = "go-v2")]
    GoV2,
    /// SDK for Java v2: a new token, the list, the credentials, on one connection.
    #[value(name = "java-v2")]
    JavaV2,
    /// SDK for Rust: a token kept for six hours, even when it is refused.
    Rust,
    /// SDK for C++: no content-length, the list without its slash, and the zone at the end.
    Cpp,
    /// aws-c-auth under Python and others: a token kept for six hours, no content-length.
    Awscrt,
    /// SDK for Ruby: a token kept for six hours; the extended paths.
    Ruby,
    /// SDK for PHP: a new token; the extended paths.
    Php,
    /// SDK for .NET: a new token, the list without its slash, the credentials.
    Dotnet,
    /// object_store: a new token for ten minutes, the list, the credentials.
    ObjectStore,
    /// minio-py: as boto3.
    MinioPy,
    /// minio-js: a doubled slash before the role, which is percent-encoded; three connections.
    MinioJs,
    /// google-auth: no token; the list without its slash, the credentials, the zone.
    GoogleAuth,
    /// No client: ten times the credentials on one connection, to see what a kept connection costs.
    KeepAlive,
    /// Clients from before 2020: no token; list and credentials on one connection.
    V1,
}

/// What a client does about tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    /// It knows of none.
    Without,
    /// A new one for each dialogue.
    Fresh {
        /// The lifetime it asks for, in seconds.
        ttl_s: u16,
    },
    /// One for all dialogues of a pod.
    Kept {
        /// The lifetime it asks for, in seconds.
        ttl_s: u16,
    },
}

/// Which requests share a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// All of a dialogue.
    All,
    /// None.
    Nothing,
    /// None, and each request says so.
    NothingAndClose,
}

/// A client's dialogue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Script {
    /// What it does about tokens.
    pub token: Token,
    /// Which requests share a connection.
    pub sharing: Sharing,
    /// The path of the role list.
    pub list: &'static str,
    /// What the role is appended to.
    pub documents: &'static str,
    /// Whether the role is percent-encoded in the path.
    pub encodes: bool,
    /// How often the credentials are asked for.
    pub documents_asked: u8,
    /// What is asked for at the end, whatever the answer.
    pub aside: Option<&'static str>,
    /// Whether a PUT without a body says so.
    pub says_length: bool,
    /// Headers that go with each request.
    pub headers: &'static str,
    /// How long it waits for each answer.
    pub timeout: Duration,
}

const LIST: &str = "/latest/meta-data/iam/security-credentials/";
const LIST_BARE: &str = "/latest/meta-data/iam/security-credentials";
const EXTENDED: &str = "/latest/meta-data/iam/security-credentials-extended/";
const ZONE: &str = "/latest/meta-data/placement/availability-zone";

/// A new token, list and credentials on one connection: what most do.
const COMMON: Script = Script {
    token: Token::Fresh { ttl_s: 21_600 },
    sharing: Sharing::All,
    list: LIST,
    documents: LIST,
    encodes: false,
    documents_asked: 1,
    aside: None,
    says_length: true,
    headers: "",
    timeout: SDK_TIMEOUT,
};

const KEPT: Script = Script {
    token: Token::Kept { ttl_s: 21_600 },
    ..COMMON
};

const GO_V1: Script = Script {
    headers: "user-agent: aws-sdk-go/1.44\r\naccept-encoding: gzip\r\n",
    ..KEPT
};

const GO_V2: Script = Script {
    token: Token::Kept { ttl_s: 300 },
    headers: "user-agent: aws-sdk-go-v2/1.43\r\naccept-encoding: gzip\r\n",
    timeout: GO_V2_TIMEOUT,
    ..COMMON
};

const JAVA_V2: Script = Script {
    headers: "accept: */*\r\nuser-agent: aws-sdk-java/2\r\nconnection: keep-alive\r\n",
    ..COMMON
};

const CPP: Script = Script {
    list: LIST_BARE,
    aside: Some(ZONE),
    says_length: false,
    ..COMMON
};

const MINIO_JS: Script = Script {
    sharing: Sharing::Nothing,
    documents: "/latest/meta-data/iam/security-credentials//",
    encodes: true,
    ..COMMON
};

const GOOGLE_AUTH: Script = Script {
    token: Token::Without,
    list: LIST_BARE,
    aside: Some(ZONE),
    ..COMMON
};

impl Shape {
    /// What is asked with unless the user says otherwise: one of each habit that costs differently.
    pub(crate) const ALL: [Self; 5] = [Self::Boto3, Self::Js, Self::GoV2, Self::JavaV2, Self::V1];

    /// What it says.
    pub(crate) const fn script(self) -> Script {
        match self {
            Self::Boto3 | Self::MinioPy => COMMON,
            Self::Js => Script {
                sharing: Sharing::Nothing,
                ..COMMON
            },
            Self::JsV2 => Script {
                sharing: Sharing::NothingAndClose,
                ..COMMON
            },
            Self::GoV1 => GO_V1,
            Self::GoV2 => GO_V2,
            Self::JavaV2 => JAVA_V2,
            Self::Rust => KEPT,
            Self::Cpp => CPP,
            Self::Awscrt => Script {
                says_length: false,
                ..KEPT
            },
            Self::Ruby => Script {
                list: EXTENDED,
                documents: EXTENDED,
                ..KEPT
            },
            Self::Php => Script {
                list: EXTENDED,
                documents: EXTENDED,
                ..COMMON
            },
            Self::Dotnet => Script {
                list: LIST_BARE,
                ..COMMON
            },
            Self::ObjectStore => Script {
                token: Token::Fresh { ttl_s: 600 },
                ..COMMON
            },
            Self::MinioJs => MINIO_JS,
            Self::GoogleAuth => GOOGLE_AUTH,
            Self::KeepAlive => Script {
                documents_asked: 10,
                ..COMMON
            },
            Self::V1 => Script {
                token: Token::Without,
                ..COMMON
            },
        }
    }
}

impl Script {
    /// The path of the credentials of `role`.
    pub(crate) fn document(&self, role: &str) -> String {
        if !self.encodes {
            return format!("{}{role}", self.documents);
        }
        let mut path = self.documents.to_owned();
        for byte in role.bytes() {
            if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
                path.push(char::from(byte));
            } else {
                push(&mut path, format_args!("%{byte:02X}"));
            }
        }
        path
    }
}
