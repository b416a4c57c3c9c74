//! Which resource a request means: path, query and the representation the client accepts. Pure.

use std::collections::BTreeMap;

use super::kind::{Group, Kind};
use super::selector::Selector;
use super::status::ApiError;

/// What a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// All objects of a kind, of one namespace or of all.
    Collection {
        kind: Kind,
        group: Group,
        namespace: Option<String>,
    },
    /// One object.
    Object {
        kind: Kind,
        group: Group,
        namespace: String,
        name: String,
        part: Subresource,
    },
    /// `POST` of a `TokenReview`.
    TokenReview,
    /// A document that is the same for everybody.
    Document(Document),
}

/// What follows an object's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subresource {
    Itself,
    Status,
    Binding,
    Token,
}

/// Everything that is not about one resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Document {
    Version,
    Healthy,
    Api,
    Apis,
    CoreResources,
    EventsGroup,
    EventsResources,
    AuthenticationGroup,
    AuthenticationResources,
    OpenApiV2,
    OpenApiV3,
    OpenApiV3Core,
    OpenApiV3Events,
    OpenIdConfiguration,
    Keys,
}

impl Route {
    pub(crate) fn parse(path: &str) -> Result<Self, ApiError> {
        let steps: Vec<&str> = path.split('/').filter(|step| !step.is_empty()).collect();
        if let Some(document) = document(&steps) {
            return Ok(Self::Document(document));
        }
        let (group, steps) = match steps.as_slice() {
            ["apis", "authentication.k8s.io", "v1", "tokenreviews"] => {
                return Ok(Self::TokenReview);
            }
            ["api", "v1", rest @ ..] => (Group::Core, rest),
            ["apis", "events.k8s.io", "v1", rest @ ..] => (Group::Events, rest),
            _ => return Err(ApiError::no_such_path()),
        };
        let route = match steps {
            ["namespaces", namespace, plural, rest @ ..] if Kind::from_plural(plural).is_some() => {
                resource(group, Some(namespace), plural, rest)
            }
            [plural, rest @ ..] => resource(group, None, plural, rest),
            [] => None,
        };
        route.ok_or_else(ApiError::no_such_path)
    }
}

fn document(steps: &[&str]) -> Option<Document> {
    Some(match steps {
        ["version"] => Document::Version,
        ["healthz" | "readyz" | "livez", ..] => Document::Healthy,
        ["api"] => Document::Api,
        ["apis"] => Document::Apis,
        ["api", "v1"] => Document::CoreResources,
        ["apis", "events.k8s.io"] => Document::EventsGroup,
        ["apis", "events.k8s.io", "v1"] => Document::EventsResources,
        ["apis", "authentication.k8s.io"] => Document::AuthenticationGroup,
        ["apis", "authentication.k8s.io", "v1"] => Document::AuthenticationResources,
        ["openapi", "v2"] => Document::OpenApiV2,
        ["openapi", "v3"] => Document::OpenApiV3,
        ["openapi", "v3", "api", "v1"] => Document::OpenApiV3Core,
        ["openapi", "v3", "apis", "events.k8s.io", "v1"] => Document::OpenApiV3Events,
        [".well-known", "openid-configuration"] => Document::OpenIdConfiguration,
        ["openid", "v1", "jwks"] => Document::Keys,
        _ => return None,
    })
}

fn resource(group: Group, namespace: Option<&str>, plural: &str, rest: &[&str]) -> Option<Route> {
    let kind = Kind::from_plural(plural)?;
    if group == Group::Events && kind != Kind::Event {
        return None;
    }
    if !kind.namespaced() && namespace.is_some() {
        return None;
    }
    let (name, part) = match rest {
        [] => {
            return Some(Route::Collection {
                kind,
                group,
                namespace: namespace.map(str::to_owned),
            });
        }
        [name] => (name, Subresource::Itself),
        [name, "status"] if kind.has_status() => (name, Subresource::Status),
        [name, "binding"] if kind == Kind::Pod => (name, Subresource::Binding),
        [name, "token"] if kind == Kind::ServiceAccount => (name, Subresource::Token),
        _ => return None,
    };
    let namespace = match (kind.namespaced(), namespace) {
        (true, None) => return None,
        (true, Some(namespace)) => namespace.to_owned(),
        (false, _) => String::new(),
    };
    Some(Route::Object {
        kind,
        group,
        namespace,
        name: (*name).to_owned(),
        part,
    })
}

/// The parameters after the question mark.
#[derive(Debug, Default)]
pub(crate) struct Query(BTreeMap<String, String>);

impl Query {
    pub(crate) fn parse(query: &str) -> Self {
        Self(
            form_urlencoded::parse(query.as_bytes())
                .into_owned()
                .collect(),
        )
    }

    pub(crate) fn text(&self, key: &str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }

    pub(crate) fn flag(&self, key: &str) -> bool {
        matches!(self.text(key), "true" | "1" | "True" | "t")
    }

    /// A number, or none if the parameter is absent or empty.
    pub(crate) fn number(&self, key: &str) -> Result<Option<u64>, ApiError> {
        match self.text(key) {
            "" => Ok(None),
            given => given.parse().map(Some).map_err(|error| {
                ApiError::bad_request(format!("invalid {key} {given:?}: {error}"))
            }),
        }
    }

    pub(crate) fn selector(&self, kind: Kind) -> Result<Selector, ApiError> {
        Selector::parse(kind, self.text("labelSelector"), self.text("fieldSelector"))
    }
}

/// How much of an object the client wants to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// All of it.
    Full,
    /// `PartialObjectMetadata`.
    Metadata,
    /// `Table`, which is what `kubectl get` prints.
    Table,
}

impl Form {
    /// The first form in the `Accept` header that is offered here.
    pub(crate) fn of(accept: &str) -> Self {
        for one in accept.split(',') {
            let mut parameters = one.split(';').map(str::trim);
            let media = parameters.next().unwrap_or_default();
            let mut wanted = None;
            let (mut version, mut group) = (true, true);
            for parameter in parameters {
                match parameter.split_once('=') {
                    Some(("as", form)) => wanted = Some(form),
                    Some(("v", given)) => version = given == "v1",
                    Some(("g", given)) => group = given == "meta.k8s.io",
                    _ => {}
                }
            }
            if !matches!(media, "application/json" | "*/*" | "application/*") || !version || !group
            {
                continue;
            }
            match wanted {
                Some("Table") => return Self::Table,
                Some("PartialObjectMetadata" | "PartialObjectMetadataList") => {
                    return Self::Metadata;
                }
                Some(_) => {}
                None => return Self::Full,
            }
        }
        Self::Full
    }
}

#[cfg(test)]
mod tests {
    use super::{Form, Group, Kind, Route, Subresource};

    #[track_caller]
    fn object(path: &str, kind: Kind, namespace: &str, name: &str, part: Subresource) {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let expected = Route::Object {
            kind,
            group: Group::Core,
            namespace,
            name,
            part,
        };
        assert_eq!(Route::parse(path), Ok(expected), "{path}");
    }

    #[track_caller]
    fn collection(path: &str, kind: Kind, namespace: Option<&str>) {
        let namespace = namespace.map(str::to_owned);
        let expected = Route::Collection {
            kind,
            group: Group::Core,
            namespace,
        };
        assert_eq!(Route::parse(path), Ok(expected), "{path}");
    }

    #[test]
    fn paths() {
        collection("/api/v1/pods", Kind::Pod, None);
        collection("/api/v1/namespaces/a/pods", Kind::Pod, Some("a"));
        collection("/api/v1/namespaces", Kind::Namespace, None);
        object(
            "/api/v1/namespaces/a/pods/b",
            Kind::Pod,
            "a",
            "b",
            Subresource::Itself,
        );
        object(
            "/api/v1/namespaces/a/pods/b/status",
            Kind::Pod,
            "a",
            "b",
            Subresource::Status,
        );
        object(
            "/api/v1/namespaces/a",
            Kind::Namespace,
            "",
            "a",
            Subresource::Itself,
        );
        object(
            "/api/v1/namespaces/a/status",
            Kind::Namespace,
            "",
            "a",
            Subresource::Status,
        );
        object("/api/v1/nodes/n", Kind::Node, "", "n", Subresource::Itself);
        object(
            "/api/v1/namespaces/a/serviceaccounts/s/token",
            Kind::ServiceAccount,
            "a",
            "s",
            Subresource::Token,
        );
    }

    #[test]
    fn paths_that_lead_nowhere() {
        for path in [
            "/",
            "/api/v2",
            "/api/v1/pods/b",
            "/api/v1/namespaces/a/nodes",
            "/api/v1/secrets",
            "/api/v1/namespaces/a/pods/b/log",
            "/apis/events.k8s.io/v1/pods",
        ] {
            assert_eq!(Route::parse(path).unwrap_err().code(), 404, "{path}");
        }
    }

    #[test]
    fn forms() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,\
                       application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(Form::of(kubectl), Form::Table);
        assert_eq!(
            Form::of("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"),
            Form::Metadata
        );
        assert_eq!(
            Form::of("application/json;as=Table;v=v9;g=meta.k8s.io,application/json"),
            Form::Full
        );
        assert_eq!(Form::of("*/*"), Form::Full);
        assert_eq!(Form::of(""), Form::Full);
    }
}
