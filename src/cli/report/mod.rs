//! `cutover report`: a whole migration on one page.
//!
//! ```text
//! the pipeline's state ─► facts ─► page (blocks) ─► Markdown, or one HTML file
//! ```
//!
//! What enters is what the target knows of the pipeline, so that it works from any host and without a worker. What
//! leaves says what was copied when and how fast, the lag over time, what is set aside, what was verified, and whether
//! the move can go. Absent on purpose: row values, passwords, and anything that would have to be fetched to show it.

mod facts;
mod html;
mod markdown;
mod page;

use std::path::Path;

use super::Failure;
use crate::{
    config::Config,
    control::parts,
    observe::{now_us, utc},
};

/// Prints the report as Markdown, or writes it as a page to `html`.
pub(crate) async fn report(config: &Config, html: Option<&Path>) -> Result<(), Failure> {
    let store = parts::store(config)?;
    super::asked::state_is_ours(&store).await?;
    let facts = facts::gather(config, &store, now_us()).await.map_err(|error| {
        anyhow::anyhow!("the state of `{}` cannot be read: {error}; has `cutover run` been started?", config.name)
    })?;
    let page = page::of(&facts);
    let Some(file) = html else { return super::print(&markdown::render(&page).trim_end()) };
    std::fs::write(file, html::render(&page)).map_err(|error| {
        anyhow::anyhow!("{} cannot be written: {error}; name a file in a folder that is there", file.display())
    })?;
    super::print(&format!("{}: {}, as of {} UTC", file.display(), page.verdict(), utc(facts.made_us)))
}
