//! Topics of a connector of Debezium, in place of a source: what is in them, and whether it can be applied.

use super::{Part, Report, target::add};
use crate::{config::Config, control::preview, log::DebeziumConfig};

/// Examines the topics, and the transforms against what they show.
pub(super) async fn examine(config: &Config, debezium: &DebeziumConfig, report: &mut Report) {
    let found = match preview::look(config, debezium).await {
        Ok(found) => found,
        Err(problem) => {
            report.blocked_by(Part::Source, problem);
            return;
        }
    };
    report.tables = found.tables;
    found.refused.iter().for_each(|problem| report.blocked_by(Part::Source, problem.clone()));
    for table in &found.silent {
        let what = format!("topic {} is not there or holds no change yet", debezium.topic(table));
        let fix = "start the connector with this table, or correct [log.debezium] topics and [source] tables";
        if found.tables == 0 {
            report.blocks_on(Part::Source, what, fix)
        } else {
            report.warns_of(Part::Source, what, fix)
        }
    }
    if found.tables == 0 && found.silent.is_empty() && found.refused.is_empty() {
        let what = format!("there is no topic {}", debezium.topic("<table>"));
        report.blocks_on(Part::Source, what, "start the connector, or correct [log.debezium] topics");
    }
    if found.may_hide_cascades {
        report.warns_of(
            Part::Source,
            "what ON DELETE CASCADE, SET NULL and ON UPDATE CASCADE do to children is in no topic before MySQL 9.6, nor \
             from MariaDB, and stays unseen",
            "nothing needs to be done where no captured table has such a foreign key; else let cutover capture the \
             source itself, or change children before their parents at the source",
        );
    }
    for problem in &found.transforms {
        add(problem, report);
    }
}
