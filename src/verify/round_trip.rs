//! Whether rows of the source come back equal: through today's transforms, and through those of the way back.
//!
//! Each row is looked at as it was read, whatever either side has: nothing has to be waited for, and nothing moves.

use std::sync::Arc;

use super::{
    Ask, Progress, Verdict, Verifier, VerifyError,
    doubts::text,
    reader::{Chunks, Steps},
    verdict::{Drift, TableVerdict},
};
use crate::{
    log::envelope::key_values,
    model::{Plan, TableSchema, Value},
    target::{Comparer, Looks, RowEvent, Strayed},
};

impl Verifier {
    /// Sends the rows of the tables there and back, by these plans and those of the way back.
    ///
    /// # Errors
    /// When a side cannot be read.
    pub async fn round_trip(
        &self,
        schemas: &[Arc<TableSchema>],
        plans: &Arc<[Plan]>,
        back: &[Plan],
        ask: &Ask,
        show: &(dyn Fn(Progress<'_>) + Sync),
    ) -> Result<Verdict, VerifyError> {
        let looks = Looks { values: ask.values, ..Looks::default() };
        let mut comparer = self.target.comparer(Arc::clone(plans), looks).await?;
        let mut tables = Vec::new();
        let wanted = |schema: &&Arc<TableSchema>| ask.tables.is_empty() || ask.tables.contains(&schema.table.table);
        for schema in schemas.iter().filter(wanted) {
            tables.push(Box::pin(self.trip(&mut *comparer, schema, back, show)).await?);
        }
        Ok(Verdict::of(tables))
    }

    async fn trip(
        &self,
        comparer: &mut dyn Comparer,
        schema: &Arc<TableSchema>,
        back: &[Plan],
        show: &(dyn Fn(Progress<'_>) + Sync),
    ) -> Result<TableVerdict, VerifyError> {
        let mut verdict = TableVerdict::new(&schema.table.table);
        if self.store.reached(self.partitions).await?.is_none() {
            verdict.skipped = Some("nothing of the source's log is applied yet".into());
            return Ok(verdict);
        }
        if !comparer.goes_back(&schema.table, back) {
            verdict.skipped = Some("its rows do not go there and back one by one".into());
            return Ok(verdict);
        }
        let mut parts = Steps::begin(self, schema, Chunks::Read).await?;
        while let Some(part) = parts.next_part().await? {
            verdict.rows += part.len() as u64;
            for strayed in comparer.there_and_back(&part, back).await? {
                verdict.different += 1;
                verdict.show(drift(schema, &part, strayed));
            }
            let total = parts.rows_total.max(verdict.rows);
            show(Progress { table: &verdict.table, rows: verdict.rows, rows_total: total });
        }
        Ok(verdict)
    }
}

/// A row that does not come back equal, by its key at the source.
fn drift(schema: &TableSchema, rows: &[RowEvent], Strayed { row, columns, reason }: Strayed) -> Drift {
    let row = rows.get(row);
    let key = row.and_then(|row| key_values(schema, &row.key)).map(|values| values.iter().map(shown).collect());
    let whole = || row.map(|row| vec![text(&row.key)]).unwrap_or_default();
    Drift {
        target: schema.table.to_string(),
        kind: "different".to_owned(),
        key: key.unwrap_or_else(whole),
        columns,
        values: Vec::new(),
        reason,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn shown(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Int(number) => Some(number.to_string()),
        Value::UInt(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Double(number) => Some(number.to_string()),
        Value::Text(text) => Some(text.clone()),
        Value::Bytes(bytes) => Some(format!("\\x{}", hex(bytes))),
    }
}
