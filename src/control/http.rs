//! The worker's endpoints: `/metrics`, `/healthz`, `/readyz`, `/status`.

use std::sync::{Arc, Mutex, PoisonError};

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tokio_util::sync::CancellationToken;

use super::dead_letter_topic;
use crate::{
    config::HttpConfig,
    observe::{Frontier, Halts, Invariant, metric, now_us},
    state::{Store, status::Status},
};

/// Upper bounds in seconds, for both histograms: from a millisecond to minutes.
const BUCKETS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0];

/// What collects the metrics of this process.
pub type Collector = Arc<PrometheusRecorder>;

/// Collects the metrics of this process. Called once.
pub fn install_metrics() -> anyhow::Result<(PrometheusHandle, Collector)> {
    let mut builder = PrometheusBuilder::new();
    for name in [metric::APPLY_BATCH_SECONDS, metric::END_TO_END_SECONDS] {
        builder = builder.set_buckets_for_metric(Matcher::Full(name.into()), &BUCKETS)?;
    }
    let collector = Arc::new(builder.build_recorder());
    metrics::set_global_recorder(Arc::clone(&collector))?;
    describe();
    Ok((collector.handle(), collector))
}

fn describe() {
    use metrics::{describe_counter as counter, describe_gauge as gauge, describe_histogram as histogram};
    gauge!(
        metric::SYNC_LAG_SECONDS,
        "Now minus the commit time of the newest change or heartbeat that is durable in the target, the maximum over partitions"
    );
    gauge!(
        metric::CAPTURE_LAG_SECONDS,
        "Now minus the commit time of the newest change or heartbeat that is durable in the log"
    );
    counter!(metric::CHANGES_APPLIED, "Rows written to the target, by target table and operation");
    counter!(metric::SYNC_ERRORS, "Errors met, by stage; retried or halted on");
    counter!(metric::CONFLICTS, "Conflicting changes in two-way sync");
    counter!(metric::DEAD_LETTERS, "Rows set aside because they could not be transformed or stored");
    gauge!(metric::DRIFT_ROWS, "Rows that had drifted when their tables were compared last");
    counter!(metric::VERIFY_ROWS, "Rows compared in the background, by source table");
    gauge!(metric::VERIFY_LAST_PASS_AGE, "Seconds since a table was compared as a whole, by source table");
    counter!(metric::SNAPSHOT_ROWS, "Rows copied and durable in the target, by source table");
    gauge!(metric::SNAPSHOT_PROGRESS, "Share of rows copied, 0 to 1");
    gauge!(metric::TRAFFIC_PERCENT, "Share of users that the new system serves");
    counter!(
        metric::INVARIANT_VIOLATIONS,
        "Times that something which must always hold did not, by its name: a defect of cutover"
    );
    histogram!(metric::APPLY_BATCH_SECONDS, "Time to apply one batch");
    histogram!(metric::END_TO_END_SECONDS, "From the source's commit to durable in the target, per row");
    // What has not happened yet is zero, not absent: alerts on rates need the first sample.
    for stage in ["capture", "log", "apply", "snapshot"] {
        metrics::counter!(metric::SYNC_ERRORS, "stage" => stage).absolute(0);
    }
    for invariant in Invariant::ALL {
        metrics::counter!(metric::INVARIANT_VIOLATIONS, "invariant" => invariant.name()).absolute(0);
    }
    metrics::counter!(metric::CONFLICTS).absolute(0);
    metrics::counter!(metric::DEAD_LETTERS).absolute(0);
    metrics::gauge!(metric::DRIFT_ROWS).set(0.0);
    metrics::gauge!(metric::TRAFFIC_PERCENT).set(0.0);
}

/// How the worker fares, from when it last began.
#[derive(Debug, Clone)]
pub struct Vitals {
    pub frontier: Arc<Frontier>,
    pub halts: Arc<Halts>,
}

/// What the endpoints look at.
#[derive(Debug)]
pub struct Endpoints {
    vitals: Mutex<Vitals>,
    store: Arc<Store>,
    metrics: PrometheusHandle,
    ready_lag_max_seconds: f64,
}

impl Endpoints {
    pub fn new(vitals: Vitals, store: Arc<Store>, metrics: PrometheusHandle, config: &HttpConfig) -> Endpoints {
        let vitals = Mutex::new(vitals);
        Endpoints { vitals, store, metrics, ready_lag_max_seconds: config.ready_lag_max_seconds }
    }

    /// Looks at these from now on: the worker has begun anew.
    pub fn show(&self, vitals: Vitals) {
        *self.vitals.lock().unwrap_or_else(PoisonError::into_inner) = vitals;
    }

    /// How the worker fares.
    pub fn vitals(&self) -> Vitals {
        self.vitals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Serves until `stop`.
pub async fn serve(listener: tokio::net::TcpListener, endpoints: Arc<Endpoints>, stop: CancellationToken) {
    let router = Router::new()
        .route("/metrics", get(render))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/status", get(status))
        .with_state(endpoints);
    let served = axum::serve(listener, router).with_graceful_shutdown(async move { stop.cancelled().await }).await;
    if let Err(error) = served {
        tracing::error!(%error, "the http server ended; metrics are gone until the worker is restarted");
    }
}

async fn render(State(endpoints): State<Arc<Endpoints>>) -> String {
    // Lag is computed when it is asked for: a stalled pipeline must not keep showing its last good value.
    let (now, Vitals { frontier, .. }) = (now_us(), endpoints.vitals());
    if let Some(lag) = frontier.lag_seconds(now) {
        metrics::gauge!(metric::SYNC_LAG_SECONDS).set(lag);
    }
    if let Some(lag) = frontier.capture_lag_seconds(now) {
        metrics::gauge!(metric::CAPTURE_LAG_SECONDS).set(lag);
    }
    endpoints.metrics.render()
}

async fn ready(State(endpoints): State<Arc<Endpoints>>) -> (StatusCode, String) {
    let red = |why: String| (StatusCode::SERVICE_UNAVAILABLE, why + "\n");
    let Vitals { frontier, halts } = endpoints.vitals();
    if let Some(halt) = halts.first() {
        return red(format!("halted: {halt}"));
    }
    // No row goes through the dead letters' copy.
    let mut troubles = halts.troubles().into_iter().filter(|(part, _)| part != dead_letter_topic::PART);
    if let Some((part, what)) = troubles.next() {
        return red(format!("{part} is retrying: {what}"));
    }
    match frontier.lag_seconds(now_us()) {
        None => red("nothing is applied yet".into()),
        Some(lag) if lag > endpoints.ready_lag_max_seconds => {
            red(format!("lag is {lag:.1} s, above [http] ready_lag_max_seconds = {}", endpoints.ready_lag_max_seconds))
        }
        Some(_) => (StatusCode::OK, "ready\n".into()),
    }
}

async fn status(State(endpoints): State<Arc<Endpoints>>) -> Result<Json<Status>, (StatusCode, String)> {
    let unreachable = |error| (StatusCode::SERVICE_UNAVAILABLE, format!("the target cannot be read: {error}\n"));
    endpoints.store.proven_status().await.map(Json).map_err(unreachable)
}
