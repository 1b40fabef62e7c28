//! Connecting to DynamoDB.
//!
//! What enters: a URL, `dynamodb://region?endpoint=http://host:port`; credentials come from AWS's usual chain
//! (environment, profile files, web identity, the container's or the machine's role), never from the URL. What leaves:
//! the two clients, and errors sorted by what can be done about them. A request that is throttled is tried again by
//! whoever sent it.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use aws_config::{BehaviorVersion, Region, retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_dynamodb::{
    config::{
        ConfigBag, Intercept, ProvideCredentials, RuntimeComponents,
        interceptors::BeforeDeserializationInterceptorContextRef,
    },
    error::{BoxError, ProvideErrorMetadata, SdkError},
    primitives::{DateTime, DateTimeFormat},
};
use aws_smithy_http_client::tls;
use url::Url;

use crate::model::{Disposition, Problem};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A request that has no answer by then is sent again.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);

/// Why the service did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.problem())]
pub enum DynamoError {
    Url(String),
    Unreachable(String),
    /// More was asked than the table's capacity allows, or than the service lets one reader ask.
    Throttled(String),
    Denied(String),
    /// There is no such table, stream or shard.
    Missing(String),
    /// The stream no longer has what was asked for.
    Trimmed(String),
    IteratorExpired(String),
    Refused(String),
}

impl DynamoError {
    /// What is wrong, and what to do about it.
    pub fn problem(&self) -> Problem {
        match self {
            DynamoError::Url(told) => Problem::new(
                format!("the source URL {told}"),
                "write dynamodb://REGION, with ?endpoint=http://HOST:PORT for another than AWS's own endpoint",
            ),
            DynamoError::Unreachable(told) => Problem::bare(told),
            DynamoError::Throttled(told) => Problem::bare(told),
            DynamoError::Denied(told) => Problem::new(
                told,
                "give cutover credentials with the policy in the README (AWS_ACCESS_KEY_ID and \
                 AWS_SECRET_ACCESS_KEY, a profile, or a role)",
            ),
            DynamoError::Missing(told) => Problem::bare(told),
            DynamoError::Trimmed(told) => Problem::bare(told),
            DynamoError::IteratorExpired(told) => Problem::bare(told),
            DynamoError::Refused(told) => Problem::new(told, "run `cutover check`, or correct [source]"),
        }
    }

    /// Whether trying again can help.
    pub fn disposition(&self) -> Disposition {
        match self {
            DynamoError::Unreachable(_) | DynamoError::Throttled(_) | DynamoError::IteratorExpired(_) => {
                Disposition::Retry
            }
            DynamoError::Url(_)
            | DynamoError::Denied(_)
            | DynamoError::Missing(_)
            | DynamoError::Trimmed(_)
            | DynamoError::Refused(_) => Disposition::Halt,
        }
    }

    /// Of an answer to `operation`.
    pub fn of<E>(operation: &str, error: SdkError<E>) -> Self
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        let SdkError::ServiceError(answer) = &error else {
            return DynamoError::Unreachable(format!("{operation} had no answer: {}", chain(&error)));
        };
        let (status, refusal) = (answer.raw().status().as_u16(), answer.err());
        let code = refusal.code().unwrap_or("an unnamed error");
        let told = format!("{operation} answers {code}: {}", refusal.message().unwrap_or("no message"));
        match code {
            "TrimmedDataAccessException" => DynamoError::Trimmed(told),
            "ExpiredIteratorException" => DynamoError::IteratorExpired(told),
            "ResourceNotFoundException" => DynamoError::Missing(told),
            "ThrottlingException"
            | "Throttling"
            | "ProvisionedThroughputExceededException"
            | "RequestLimitExceeded"
            | "LimitExceededException" => DynamoError::Throttled(told),
            "AccessDeniedException"
            | "UnrecognizedClientException"
            | "InvalidSignatureException"
            | "MissingAuthenticationTokenException"
            | "MissingAuthenticationToken"
            | "ExpiredTokenException"
            | "InvalidClientTokenId" => DynamoError::Denied(told),
            _ if status >= 500 => DynamoError::Unreachable(told),
            _ => DynamoError::Refused(told),
        }
    }
}

/// An error and what caused it, on one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// A parsed URL: makes clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connector {
    region: String,
    endpoint: Option<String>,
}

impl Connector {
    /// Parses a URL; connects to nothing.
    pub fn new(url: &str) -> Result<Self, DynamoError> {
        let wrong = |problem: &str| DynamoError::Url(problem.to_owned());
        let url = Url::parse(url).map_err(|error| DynamoError::Url(format!("is none ({error})")))?;
        let region = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| wrong("names no region"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("holds credentials, which come from the environment, a profile or a role"));
        }
        if url.port().is_some() || !matches!(url.path(), "" | "/") {
            return Err(wrong("has a port or a path, where only a region belongs"));
        }
        let mut endpoint = None;
        for (name, value) in url.query_pairs() {
            match name.as_ref() {
                "endpoint" => endpoint = Some(value.into_owned()),
                _ => return Err(DynamoError::Url(format!("has the unknown option `{name}`"))),
            }
        }
        if endpoint
            .as_deref()
            .is_some_and(|endpoint| !endpoint.starts_with("http://") && !endpoint.starts_with("https://"))
        {
            return Err(wrong("has an endpoint that does not begin with http:// or https://"));
        }
        Ok(Connector { region: region.to_owned(), endpoint })
    }

    pub fn region(&self) -> &str {
        &self.region
    }

    /// Clients, with credentials that were found.
    pub async fn connect(&self) -> Result<Service, DynamoError> {
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
            .build_https();
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .build();
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http)
            .region(Region::new(self.region.clone()))
            .timeout_config(timeouts)
            .retry_config(RetryConfig::disabled());
        if let Some(endpoint) = &self.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        let config = loader.load().await;
        let none = || DynamoError::Denied("there are no credentials of AWS here".into());
        let credentials = config.credentials_provider().ok_or_else(none)?.provide_credentials().await;
        credentials
            .map_err(|error| DynamoError::Denied(format!("there are no credentials of AWS here: {}", chain(&error))))?;
        Ok(Service {
            tables: aws_sdk_dynamodb::Client::new(&config),
            streams: aws_sdk_dynamodbstreams::Client::new(&config),
            region: self.region.clone(),
        })
    }
}

/// The service: its tables and their streams. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Service {
    pub tables: aws_sdk_dynamodb::Client,
    pub streams: aws_sdk_dynamodbstreams::Client,
    pub region: String,
}

impl Service {
    /// The service's time now, µs since the Unix epoch, of whole seconds.
    pub async fn now_us(&self) -> Result<i64, DynamoError> {
        let date = ServiceDate::default();
        let asked = self.tables.list_tables().limit(1).customize().interceptor(date.clone()).send().await;
        // Also a refusal has a date.
        match (date.us(), asked) {
            (Some(us), _) => Ok(us),
            (None, Ok(_)) => Err(DynamoError::Refused("the service's answers have no date".into())),
            (None, Err(error)) => Err(DynamoError::of("ListTables", error)),
        }
    }
}

/// The time that the service put on one answer; an interceptor of the request.
#[derive(Debug, Clone, Default)]
pub struct ServiceDate(Arc<AtomicI64>);

impl ServiceDate {
    /// In microseconds since the Unix epoch, of whole seconds; none if the answer had none.
    pub fn us(&self) -> Option<i64> {
        Some(self.0.load(Ordering::Acquire)).filter(|us| *us > 0)
    }
}

impl Intercept for ServiceDate {
    fn name(&self) -> &'static str {
        "ServiceDate"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date");
        let date = date.and_then(|text| DateTime::from_str(text, DateTimeFormat::HttpDate).ok());
        self.0.store(date.map_or(0, |date| date.secs().saturating_mul(1_000_000)), Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_a_region_and_perhaps_an_endpoint() {
        let connector = Connector::new("dynamodb://eu-west-1").expect("valid");
        assert_eq!((connector.region.as_str(), connector.endpoint), ("eu-west-1", None));
        let connector = Connector::new("dynamodb://local?endpoint=http://127.0.0.1:8000").expect("valid");
        assert_eq!(connector.endpoint.as_deref(), Some("http://127.0.0.1:8000"));
        for url in [
            "dynamodb://",
            "dynamodb://key:secret@eu-west-1",
            "dynamodb://eu-west-1:8000",
            "dynamodb://eu-west-1/table",
            "dynamodb://eu-west-1?endpoint=localhost:8000",
            "dynamodb://eu-west-1?tls=disable",
        ] {
            let told = Connector::new(url).expect_err(url).to_string();
            assert!(told.contains("write dynamodb://REGION") && !told.contains("secret"), "{told}");
        }
    }
}
