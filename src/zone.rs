//! How far local time is from UTC: retention counts the days of the place where a snapshot was made.

/// Minutes that local time was ahead of UTC at this moment, by the system's own rules; `None` if it does not know.
pub fn utc_offset_min(unix_ms: u64) -> Option<i16> {
    #[cfg(target_env = "gnu")]
    {
        let seconds = libc::time_t::try_from(unix_ms / 1_000).ok()?;
        let mut local = std::mem::MaybeUninit::<libc::tm>::uninit();
        #[expect(unsafe_code, reason = "the standard library knows no time zones")]
        // SAFETY: both pointers are to values of this frame, and the result is read only if the call has filled it in.
        let offset_s = unsafe {
            if libc::localtime_r(&raw const seconds, local.as_mut_ptr()).is_null() {
                return None;
            }
            local.assume_init().tm_gmtoff
        };
        i16::try_from(offset_s / 60).ok()
    }
    #[cfg(not(target_env = "gnu"))]
    {
        let _ = unix_ms;
        None
    }
}
