//! Looking at something again and again: redrawn on a terminal, one look after the other in a pipe.

use crate::args::Global;
use crate::exit::{self, Exit};
use crate::print;
use farshore_core::host::{WallClock, real};
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// Home, then everything below it empty.
const REDRAW: &str = "\u{1b}[H\u{1b}[J";

/// Shows what `look` says every so many seconds, until the process is ended or nobody reads any more. The first look must
/// succeed; a later one that fails is shown and does not end it, since trouble is when one watches.
pub async fn every<F>(seconds: u64, global: &Global, look: impl Fn() -> F) -> Result<u8, Exit>
where
    F: Future<Output = Result<String, Exit>>,
{
    let redraw = std::io::stdout().is_terminal() && !global.json;
    let mut text = look().await?;
    loop {
        if !show(&text, redraw, seconds, global) {
            return Ok(exit::OK);
        }
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        text = match look().await {
            Ok(text) => text,
            Err(exit) if global.json => {
                eprintln!("farshore: {}", exit.message);
                continue;
            }
            Err(exit) => format!("{}\n", exit.message),
        };
    }
}

/// False if nobody reads any more.
fn show(text: &str, redraw: bool, seconds: u64, global: &Global) -> bool {
    let time = print::time(real::SystemClock.now_ms());
    let page = match (redraw, global.json) {
        (_, true) => text.to_owned(),
        (true, _) => format!("{REDRAW}every {seconds} s, {time} UTC; Ctrl-C ends\n\n{text}"),
        (false, _) => format!("{time} UTC\n{text}\n"),
    };
    let mut out = std::io::stdout().lock();
    out.write_all(page.as_bytes()).and_then(|()| out.flush()).is_ok()
}
