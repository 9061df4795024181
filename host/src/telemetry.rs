//! Figures for `/metrics`, in Prometheus' text format, and how log lines are written.

use std::time::Duration;

use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};

pub mod log;

/// Upper bounds of durations, in seconds: from a warm dispatch to a long function.
const SECONDS: &[f64] = &[
    0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0, 60.0, 300.0, 900.0,
];

/// The figures of one node.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    executions: IntCounterVec,
    execution_seconds: HistogramVec,
    start_seconds: HistogramVec,
    instances_ended: IntCounterVec,
    /// Executions that are being served or wait.
    pub executions_in_flight: IntGauge,
    /// Instances, those being made included.
    pub instances: IntGauge,
    /// Instances that wait for room.
    pub instances_waiting: IntGauge,
    /// Bytes of memory that are reserved for instances.
    pub memory_reserved: IntGauge,
    /// Bytes that may be; 0 is no limit.
    pub memory_budget: IntGauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let counter = |name, help, label| {
            IntCounterVec::new(Opts::new(name, help), label).expect("constants that are valid")
        };
        let histogram = |name, help, label| {
            let options = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
            HistogramVec::new(options, label).expect("constants that are valid")
        };
        let gauge = |name, help| IntGauge::new(name, help).expect("constants that are valid");
        let metrics = Self {
            registry: Registry::new(),
            executions: counter(
                "opr_executions_total",
                "Executions that ended, by how they came by their instance and how they ended.",
                &["start", "result"],
            ),
            execution_seconds: histogram(
                "opr_execution_seconds",
                "From admission to the last byte of the answer.",
                &["start"],
            ),
            start_seconds: histogram(
                "opr_start_seconds",
                "Phases of the instances' starts.",
                &["phase"],
            ),
            instances_ended: counter(
                "opr_instances_ended_total",
                "Instances that ended, by reason.",
                &["reason"],
            ),
            executions_in_flight: gauge(
                "opr_executions_in_flight",
                "Executions that are being served or wait.",
            ),
            instances: gauge("opr_instances", "Instances, those being made included."),
            instances_waiting: gauge(
                "opr_instances_waiting",
                "Instances that wait for room on this node.",
            ),
            memory_reserved: gauge(
                "opr_memory_reserved_bytes",
                "Memory that is reserved for instances.",
            ),
            memory_budget: gauge(
                "opr_memory_budget_bytes",
                "Memory that may be reserved for instances; 0 is no limit.",
            ),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&self) {
        let collectors: [Box<dyn prometheus::core::Collector>; 9] = [
            Box::new(self.executions.clone()),
            Box::new(self.execution_seconds.clone()),
            Box::new(self.start_seconds.clone()),
            Box::new(self.instances_ended.clone()),
            Box::new(self.executions_in_flight.clone()),
            Box::new(self.instances.clone()),
            Box::new(self.instances_waiting.clone()),
            Box::new(self.memory_reserved.clone()),
            Box::new(self.memory_budget.clone()),
        ];
        for collector in collectors {
            self.registry
                .register(collector)
                .expect("names that differ");
        }
    }

    /// Counts an execution that ended.
    pub fn execution(&self, start: &str, result: &str, duration: Duration) {
        self.executions.with_label_values(&[start, result]).inc();
        self.execution_seconds
            .with_label_values(&[start])
            .observe(duration.as_secs_f64());
    }

    /// Notes how long a phase of a start took.
    pub fn phase(&self, phase: &str, duration: Duration) {
        self.start_seconds
            .with_label_values(&[phase])
            .observe(duration.as_secs_f64());
    }

    /// Counts an instance that ended.
    pub fn instance_ended(&self, reason: &str) {
        self.instances_ended.with_label_values(&[reason]).inc();
    }

    /// All figures as text.
    pub fn text(&self) -> String {
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .expect("memory takes all that is written");
        String::from_utf8(text).expect("the format is text")
    }
}

/// An error and its causes as one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let texts: Vec<_> = causes.map(ToString::to_string).collect();
    texts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_executions_and_phases() {
        let metrics = Metrics::default();
        metrics.execution("cold", "ok", Duration::from_millis(20));
        metrics.phase("boot", Duration::from_millis(15));
        let text = metrics.text();
        for line in [
            "opr_executions_total{result=\"ok\",start=\"cold\"} 1",
            "opr_execution_seconds_count{start=\"cold\"} 1",
            "opr_start_seconds_bucket{phase=\"boot\",le=\"0.01\"} 0",
            "opr_start_seconds_bucket{phase=\"boot\",le=\"0.025\"} 1",
            "opr_instances 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
