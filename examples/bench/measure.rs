//! Arithmetic on what was measured, and what the system says of a process.

use std::{fs, io, time::Duration};

/// Clock ticks a second in `/proc/<pid>/stat`: 100 on every Linux, whatever the kernel's own rate is.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a process has used so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// Time on a processor, in the program and in the kernel.
    pub(crate) cpu: Duration,
    /// Resident memory now, in bytes.
    pub(crate) resident: u64,
    /// Resident memory at most, in bytes.
    pub(crate) peak: u64,
}

impl Usage {
    /// Reads it of all processes of a group together.
    ///
    /// # Errors
    /// If there is none, or the system is not Linux.
    pub(crate) fn of_group(group: u32) -> io::Result<Self> {
        let mut sum: Option<Self> = None;
        for entry in fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // One that ends meanwhile has used nothing any more.
            let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
            let of = stat.rsplit_once(')').and_then(|(_, fields)| fields.split_ascii_whitespace().nth(2)?.parse().ok());
            let Some(usage) = (of == Some(group)).then(|| Self::of(pid)).and_then(Result::ok) else { continue };
            sum = Some(sum.map_or(usage, |sum| Self {
                cpu: sum.cpu + usage.cpu,
                resident: sum.resident + usage.resident,
                peak: sum.peak + usage.peak,
            }));
        }
        sum.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Reads it of a process that is running.
    ///
    /// # Errors
    /// If there is no such process, or the system is not Linux.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let unreadable = || io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid} cannot be read"));
        // The second field is a name that may hold anything, in parentheses. Times are the 14th and 15th.
        let (_, fields) = stat.rsplit_once(')').ok_or_else(unreadable)?;
        let ticks: Vec<f64> =
            fields.split_ascii_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
        let [user, system] = ticks[..] else { return Err(unreadable()) };
        let kib = |name: &str| -> Option<u64> {
            let line = status.lines().find(|line| line.starts_with(name))?;
            line.split_ascii_whitespace().nth(1)?.parse().ok()
        };
        Ok(Self {
            cpu: Duration::from_secs_f64((user + system) / TICKS_PER_SECOND),
            resident: kib("VmRSS:").ok_or_else(unreadable)? << 10,
            peak: kib("VmHWM:").ok_or_else(unreadable)? << 10,
        })
    }
}

/// The value below which a fraction of the values lies; of none, not a number.
pub(crate) fn percentile(values: &[f64], fraction: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is between 0 and the length")]
    let at = (last as f64 * fraction).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// The value in the middle.
pub(crate) fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}
