//! What a store's error means, in the words that help: the cause at the bottom, or the store's own code and message.
//!
//! `object_store` wraps a cause in three layers of how it was tried. A person needs the last one: "connection refused",
//! or "403 Forbidden: AccessDenied".

use std::error::Error;
use std::fmt;

/// The longest part of a store's answer that is repeated. A proxy may answer with a whole page.
const MAX_ANSWER_CHARS: usize = 300;

/// A store's error in few words.
pub(super) struct StoreWords<'e>(pub(super) &'e object_store::Error);

impl fmt::Display for StoreWords<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        if let Some((_, answer)) = text.split_once("status code: ") {
            return f.write_str(&answer_words(answer));
        }
        if let Some((_, answer)) = text.split_once("Server returned error response: ") {
            return f.write_str(&answer_words(answer));
        }
        let Some(request) = text.split_once("Error performing ").map(|(_, request)| request) else {
            return f.write_str(&text);
        };
        let cause = deepest_cause(self.0);
        match endpoint(request) {
            Some(endpoint) => write!(f, "{endpoint} does not answer: {cause}"),
            None => f.write_str(&cause),
        }
    }
}

/// Whether the store would refuse the same request again: it is malformed, not implemented, or the store's certificate
/// is not trusted.
pub(super) fn is_refusal(error: &object_store::Error) -> bool {
    if matches!(error, object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. }) {
        return true;
    }
    let text = error.to_string();
    let status = text.split_once("status code: ").and_then(|(_, answer)| answer.get(..3)?.parse::<u16>().ok());
    match status {
        // S3 gives this status also to a body that came too slowly or not whole.
        Some(400) => !["RequestTimeout", "IncompleteBody"].iter().any(|code| text.contains(code)),
        // A time-out, a conflict with another request, a failed precondition, or too many requests may pass.
        Some(401 | 403 | 404 | 408 | 409 | 412 | 423 | 425 | 429) => false,
        Some(status) => (402..500).contains(&status) || status == 501,
        None => has_untrusted_certificate(error),
    }
}

fn has_untrusted_certificate(error: &object_store::Error) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = error.source();
    while let Some(error) = cause {
        // An I/O error does not count what it wraps as its source.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let tls = error.downcast_ref::<rustls::Error>();
        let tls = tls.or_else(|| wrapped.and_then(|wrapped| wrapped.downcast_ref::<rustls::Error>()));
        if matches!(tls, Some(rustls::Error::InvalidCertificate(_))) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// `403 Forbidden: <Error><Code>AccessDenied</Code><Message>Access Denied</Message>…` as `403 Forbidden: AccessDenied:
/// Access Denied`.
fn answer_words(answer: &str) -> String {
    let status = answer.split(": ").next().unwrap_or(answer).trim();
    let status = if status.starts_with('<') { "" } else { status };
    let body = answer.strip_prefix(status).unwrap_or(answer).trim_start_matches(": ").trim();
    let told: Vec<&str> = ["Code", "Message"].into_iter().filter_map(|tag| element(body, tag)).collect();
    let body: String = if told.is_empty() { body.to_owned() } else { told.join(": ") };
    let body: String = body.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(MAX_ANSWER_CHARS).collect();
    [status, &body].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": ")
}

/// The text of the first XML element of this name.
fn element<'t>(body: &'t str, tag: &str) -> Option<&'t str> {
    let (_, rest) = body.split_once(&format!("<{tag}>"))?;
    let (text, _) = rest.split_once(&format!("</{tag}>"))?;
    Some(text.trim()).filter(|text| !text.is_empty())
}

/// The server of `GET http://10.0.0.7:9000/bucket/key in 2 s, after 6 retries…`.
fn endpoint(request: &str) -> Option<&str> {
    let url = request.split_whitespace().nth(1)?;
    let (scheme, rest) = url.split_once("://")?;
    let host = rest.split('/').next()?;
    url.get(..scheme.len() + "://".len() + host.len())
}

/// The last cause in the chain that has words.
fn deepest_cause(error: &dyn Error) -> String {
    let mut cause = error;
    let mut words = error.to_string();
    while let Some(source) = cause.source() {
        cause = source;
        let text = source.to_string();
        if !text.is_empty() {
            words = text;
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::ObjectStoreExt;
    use object_store::aws::AmazonS3Builder;
    use object_store::path::Path;
    use object_store::{BackoffConfig, RetryConfig};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::{StoreWords, is_refusal};

    async fn words_of(endpoint: &str) -> String {
        StoreWords(&error_of(endpoint).await).to_string()
    }

    async fn error_of(endpoint: &str) -> object_store::Error {
        drop(rustls::crypto::ring::default_provider().install_default());
        let retry = RetryConfig { max_retries: 1, backoff: BackoffConfig::default(), ..RetryConfig::default() };
        let store = AmazonS3Builder::new()
            .with_endpoint(endpoint)
            .with_allow_http(true)
            .with_bucket_name("bucket")
            .with_access_key_id("a")
            .with_secret_access_key("b")
            .with_retry(retry)
            .build()
            .unwrap();
        store.get(&Path::from("key")).await.unwrap_err()
    }

    /// A server that gives each request this answer.
    async fn answering(answer: &'static str) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut request = vec![0; 4096];
                if socket.read(&mut request).await.is_ok() {
                    drop(socket.write_all(answer.as_bytes()).await);
                }
            }
        });
        format!("http://127.0.0.1:{port}")
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_named_with_the_cause() {
        let listener = Arc::new(std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let words = words_of(&format!("http://127.0.0.1:{port}")).await;
        assert_eq!(words, format!("http://127.0.0.1:{port} does not answer: Connection refused (os error 111)"));
    }

    #[tokio::test]
    async fn what_a_store_would_refuse_again_is_no_passing_trouble() {
        let cases = [
            ("400 Bad Request", "<Code>InvalidRequest</Code>", true),
            ("400 Bad Request", "<Code>RequestTimeout</Code>", false),
            ("405 Method Not Allowed", "-", true),
            ("501 Not Implemented", "-", true),
            ("409 Conflict", "-", false),
            ("429 Too Many Requests", "-", false),
            ("503 Service Unavailable", "-", false),
        ];
        for (status, body, refused) in cases {
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let server = answering((head + body).leak()).await;
            let error = error_of(&server).await;
            assert_eq!(is_refusal(&error), refused, "{error}");
        }
    }

    #[tokio::test]
    async fn a_refusal_names_its_code_and_message() {
        let server = answering(
            "HTTP/1.1 400 Bad Request\r\nContent-Type: application/xml\r\nContent-Length: 132\r\nConnection: close\r\n\
            \r\n<?xml version=\"1.0\"?><Error><Code>InvalidRequest</Code><Message>Content-MD5 is needed here</Message>\
            <RequestId>7</RequestId></Error>",
        );
        assert_eq!(words_of(&server.await).await, "400 Bad Request: InvalidRequest: Content-MD5 is needed here");
        let server = answering("HTTP/1.1 503 Slow Down\r\nContent-Length: 9\r\nConnection: close\r\n\r\ntry later");
        assert_eq!(words_of(&server.await).await, "503 Service Unavailable: try later");
    }
}
