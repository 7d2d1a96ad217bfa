//! Means, medians and quartiles over rounds, with their spread.

use serde::Serialize;

use crate::point::Figures;

/// Statistics of a value over all rounds. Ratios of rates use the mean, which differs least between runs on a shared
/// machine. Ratios of times use the lower quartile, because other processes only slow a round down.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Spread {
    pub(crate) mean: f64,
    pub(crate) median: f64,
    pub(crate) lower_quartile: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let Some((&min, &max)) = values.first().zip(values.last()) else { return Self::default() };
        // Interpolated between two rounds.
        let quantile = |part: f64| {
            let at = part * (values.len() - 1) as f64;
            let (low, high) = (values[at.floor() as usize], values[at.ceil() as usize]);
            low + (high - low) * at.fract()
        };
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        Self { mean, median: quantile(0.5), lower_quartile: quantile(0.25), min, max }
    }
}

/// All rounds of a row.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Summary {
    /// The group in which the row is compared: a size, an order or a number of connections.
    pub(crate) group: String,
    pub(crate) competitor: String,
    pub(crate) rate: Spread,
    /// The mean rate, as a ratio to that of the reference.
    pub(crate) ratio: f64,
    pub(crate) p50_ms: Spread,
    pub(crate) p99_ms: Spread,
    pub(crate) server_us: f64,
    pub(crate) redis_us: Option<f64>,
    pub(crate) script_us: Option<f64>,
    pub(crate) commands: Option<f64>,
    pub(crate) unexpected: u64,
    pub(crate) rounds: Vec<Figures>,
}

impl Summary {
    pub(crate) fn of(group: &str, competitor: &str, rounds: Vec<Figures>, reference: &[Figures]) -> Self {
        let over = |value: fn(&Figures) -> f64| Spread::of(rounds.iter().map(value));
        let rate = over(|figures| figures.rate);
        let reference = Spread::of(reference.iter().map(|figures| figures.rate));
        let some = |value: fn(&Figures) -> Option<f64>| {
            let values: Vec<f64> = rounds.iter().filter_map(value).collect();
            (!values.is_empty()).then(|| Spread::of(values).median)
        };
        Self {
            group: group.to_owned(),
            competitor: competitor.to_owned(),
            rate,
            ratio: rate.mean / reference.mean,
            p50_ms: over(|figures| figures.tally.latency.p50 as f64 / 1000.0),
            p99_ms: over(|figures| figures.tally.latency.p99 as f64 / 1000.0),
            server_us: over(|figures| figures.server_us).median,
            redis_us: some(|figures| figures.redis_us),
            script_us: some(|figures| figures.script_us),
            commands: some(|figures| figures.commands),
            unexpected: rounds.iter().map(|figures| figures.tally.unexpected).sum(),
            rounds,
        }
    }
}
