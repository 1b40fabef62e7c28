//! Whether a stored position can be resumed from (rules 16 and 17).
//!
//! The server itself does not say: it moves a start that is too old forward to what its slot has confirmed, and waits
//! in silence for a place that its log has not reached. Every way in which place and slot do not join has its own
//! words.

use super::{COPY_AGAIN, halt, lost};
use crate::{
    database::postgres::{
        server::ServerFacts,
        slot::{PLUGIN, Slot},
    },
    model::PostgresPosition,
    source::CaptureError,
};

/// Refuses a position that the server cannot go on from.
pub(super) fn judge(facts: &ServerFacts, slot: Option<&Slot>, from: &PostgresPosition) -> Result<(), CaptureError> {
    if facts.system != from.system {
        return Err(lost(
            format!(
                "the source is another cluster (system identifier {}) than the one that was captured ({})",
                facts.system, from.system
            ),
            format!("correct [source] url, or {COPY_AGAIN}"),
        ));
    }
    if facts.timeline != from.timeline {
        return Err(lost(
            format!(
                "the source is on timeline {} and was captured on {}: it was restored or failed over, and may lack what was captured",
                facts.timeline, from.timeline
            ),
            COPY_AGAIN,
        ));
    }
    if facts.end < from.lsn {
        return Err(lost(
            format!(
                "the source's log ends at {}, before the captured position {}: it lost its tail",
                facts.end, from.lsn
            ),
            COPY_AGAIN,
        ));
    }
    let Some(slot) = slot else {
        let reason = format!(
            "the source has no replication slot `{}`: it was dropped, or lost in a failover or restore",
            from.slot
        );
        return Err(lost(reason, COPY_AGAIN));
    };
    usable(slot, facts)?;
    if let Some(why) = &slot.invalidated {
        let reason = format!(
            "the source has invalidated the replication slot `{}` ({why}): what follows is no longer there",
            slot.name
        );
        return Err(lost(reason, format!("raise max_slot_wal_keep_size at the source and {COPY_AGAIN}")));
    }
    if let Some(confirmed) = slot.confirmed
        && confirmed > from.lsn
    {
        let reason = format!(
            "the replication slot `{}` is at {confirmed}, past the captured position {}: it was made anew, or somebody else has read it",
            slot.name, from.lsn
        );
        return Err(lost(reason, COPY_AGAIN));
    }
    Ok(())
}

/// Refuses a slot that is not ours to read.
pub(super) fn usable(slot: &Slot, facts: &ServerFacts) -> Result<(), CaptureError> {
    let ours = slot.plugin.as_deref() == Some(PLUGIN) && slot.database.as_deref() == Some(facts.database.as_str());
    if ours {
        return Ok(());
    }
    let (plugin, database) = (slot.plugin.as_deref().unwrap_or("none"), slot.database.as_deref().unwrap_or("none"));
    Err(halt(
        format!("the source has a replication slot `{}` of plugin {plugin} and database {database}", slot.name),
        format!(
            "use another `name`, or, if nobody needs it, SELECT pg_drop_replication_slot('{}') and start again",
            slot.name
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Lsn;

    fn facts() -> ServerFacts {
        ServerFacts {
            version: 150_000,
            standby: false,
            wal_level: "logical".into(),
            encoding: "UTF8".into(),
            system: "7".into(),
            timeline: 1,
            end: Lsn(1000),
            now_us: 0,
            database: "shop".into(),
        }
    }

    fn slot(confirmed: u64) -> Slot {
        Slot {
            name: "cutover_cart".into(),
            plugin: Some("pgoutput".into()),
            database: Some("shop".into()),
            active: false,
            confirmed: Some(Lsn(confirmed)),
            invalidated: None,
        }
    }

    #[test]
    fn a_slot_that_has_not_passed_the_position_is_resumed() {
        let from = facts().at(Lsn(500), "cutover_cart");
        assert!(judge(&facts(), Some(&slot(500)), &from).is_ok());
        assert!(judge(&facts(), Some(&slot(0)), &from).is_ok());
    }

    #[test]
    fn every_gap_is_told_by_its_own_words() {
        let at = facts().at(Lsn(500), "cutover_cart");
        let invalidated = Slot { invalidated: Some("wal_removed".into()), confirmed: None, ..slot(0) };
        let (other, later, short) = (
            ServerFacts { system: "8".into(), ..facts() },
            ServerFacts { timeline: 2, ..facts() },
            ServerFacts { end: Lsn(400), ..facts() },
        );
        for (facts, slot, word) in [
            (other, Some(slot(0)), "another cluster"),
            (later, Some(slot(0)), "timeline"),
            (short, Some(slot(0)), "lost its tail"),
            (facts(), None, "no replication slot"),
            (facts(), Some(invalidated), "invalidated"),
            (facts(), Some(slot(501)), "made anew"),
        ] {
            let error = judge(&facts, slot.as_ref(), &at).expect_err(word);
            assert!(matches!(error, CaptureError::Lost(_)), "{error}");
            assert!(error.to_string().contains(word) && error.to_string().contains("cutover resnapshot"), "{error}");
        }
        let foreign = Slot { plugin: Some("wal2json".into()), ..slot(0) };
        assert!(matches!(judge(&facts(), Some(&foreign), &at), Err(CaptureError::Halt(_))));
    }
}
