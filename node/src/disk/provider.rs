//! Which buckets there are, how the configuration names them, and how they are reached. Credentials come from the
//! environment or the instance, as the providers' own tools find them, and never from the configuration.

use super::check_name;
use farshore_core::limits::{
    BUCKET_BACKOFF_MS_MAX, BUCKET_CONNECT_MS, BUCKET_REQUEST_MS, BUCKET_RETRIES_MAX, BUCKET_RETRY_MS,
};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::{BackoffConfig, ClientConfigKey, Error, ObjectStore, RetryConfig};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// Who runs a bucket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Provider {
    /// S3 or anything that speaks it.
    S3,
    /// Azure Blob; the bucket is a container.
    Azure,
    /// Google Cloud Storage.
    Google,
}

/// Where a bucket is, as in `s3://bucket/prefix`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BucketUrl {
    /// From `s3://`, `az://` or `gs://`.
    pub provider: Provider,
    /// The bucket or container.
    pub bucket: String,
    /// Below which everything lies; may be empty.
    pub prefix: String,
}

impl FromStr for BucketUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").ok_or("is not like s3://bucket/prefix")?;
        let provider = match scheme {
            "s3" => Provider::S3,
            "az" => Provider::Azure,
            "gs" => Provider::Google,
            other => return Err(format!("begins with {other}://; s3://, az:// and gs:// are known")),
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_end_matches('/');
        // Nothing that an URL escapes, and no place for a password.
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let plain = |part: &str| check_name(part).is_ok() && part.chars().all(plain);
        if !plain(bucket) || !(prefix.is_empty() || prefix.split('/').all(plain)) {
            return Err("may have letters, digits, `-`, `_` and `.` between its slashes".into());
        }
        Ok(BucketUrl { provider, bucket: bucket.into(), prefix: prefix.into() })
    }
}

impl fmt::Display for BucketUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.provider {
            Provider::S3 => "s3",
            Provider::Azure => "az",
            Provider::Google => "gs",
        };
        write!(f, "{scheme}://{}/{}", self.bucket, self.prefix)
    }
}

/// How to reach a bucket. What is not said here is taken from the environment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BucketOptions {
    /// Which one.
    pub url: BucketUrl,
    /// `http://` or `https://` and a host. Default: the provider's own.
    pub endpoint: Option<String>,
    /// Region of an S3 bucket. Default: the environment's, or `us-east-1`.
    pub region: Option<String>,
    /// Speak to an endpoint without TLS. Default: no, since requests show what is stored and may be altered.
    pub allow_http: bool,
}

/// Makes the client of a bucket. Nothing is asked yet.
pub(super) fn connect(options: &BucketOptions) -> Result<Arc<dyn ObjectStore>, Error> {
    farshore_proto::tls::share_cryptography();
    let client = [
        (ClientConfigKey::Timeout, format!("{BUCKET_REQUEST_MS}ms")),
        (ClientConfigKey::ConnectTimeout, format!("{BUCKET_CONNECT_MS}ms")),
        (ClientConfigKey::AllowHttp, options.allow_http.to_string()),
    ];
    let bucket = options.url.bucket.as_str();
    match options.url.provider {
        Provider::S3 => {
            // One object a request: not every server knows how to remove several.
            let mut to = AmazonS3Builder::from_env().with_bucket_name(bucket).with_disable_bulk_delete(true);
            for (key, value) in client {
                to = to.with_config(AmazonS3ConfigKey::Client(key), value);
            }
            to = options.region.iter().fold(to, |to, region| to.with_region(region));
            to = options.endpoint.iter().fold(to, |to, endpoint| to.with_endpoint(endpoint));
            Ok(Arc::new(to.with_retry(retry()).build()?))
        }
        Provider::Azure => {
            let mut to = MicrosoftAzureBuilder::from_env().with_container_name(bucket);
            for (key, value) in client {
                to = to.with_config(AzureConfigKey::Client(key), value);
            }
            to = options.endpoint.iter().fold(to, |to, endpoint| to.with_endpoint(endpoint.clone()));
            Ok(Arc::new(to.with_retry(retry()).build()?))
        }
        Provider::Google => {
            let mut to = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket);
            for (key, value) in client {
                to = to.with_config(GoogleConfigKey::Client(key), value);
            }
            to = options.endpoint.iter().fold(to, |to, endpoint| to.with_base_url(endpoint));
            Ok(Arc::new(to.with_retry(retry()).build()?))
        }
    }
}

fn retry() -> RetryConfig {
    let ms = Duration::from_millis;
    RetryConfig {
        backoff: BackoffConfig { max_backoff: ms(BUCKET_BACKOFF_MS_MAX), ..BackoffConfig::default() },
        max_retries: BUCKET_RETRIES_MAX,
        retry_timeout: ms(BUCKET_RETRY_MS),
    }
}
