//! Closes the leaks that seams cannot: libraries that ask libc for randomness or time by themselves (the hash maps of
//! the standard library, ring, rustls). Linked into this binary only; on threads that have not called [`activate`]
//! every call passes through to the kernel.
#![allow(unsafe_code, reason = "interposing libc needs exported C functions and raw system calls")]

use std::cell::Cell;

#[derive(Clone, Copy)]
struct State {
    on: bool,
    seed: u64,
    busy: bool,
    randoms: u64,
    clocks: u64,
}

thread_local! {
    static STATE: Cell<State> =
        const { Cell::new(State { on: false, seed: 0, busy: false, randoms: 0, clocks: 0 }) };
}

/// From now on this thread's randomness comes from `seed` and its clocks stand still; timers are Tokio's and virtual.
pub fn activate(seed: u64) {
    STATE.set(State { on: true, seed, busy: false, randoms: 0, clocks: 0 });
}

/// Back to the kernel. Returns how often libraries asked for randomness and for a clock by themselves.
pub fn deactivate() -> (u64, u64) {
    let state = STATE.get();
    STATE.set(State { on: false, ..state });
    (state.randoms, state.clocks)
}

/// Starts the program again without address randomisation, so that nothing can depend on where memory lies.
pub fn fix_addresses() {
    use std::os::unix::process::CommandExt;
    // SAFETY: personality only reads or sets a flag of this process.
    unsafe {
        let now = libc::personality(0xffff_ffff);
        if now == -1 || now & libc::ADDR_NO_RANDOMIZE != 0 {
            return;
        }
        if libc::personality((now | libc::ADDR_NO_RANDOMIZE) as libc::c_ulong) == -1 {
            return;
        }
    }
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    // Only returns if it failed; then the run goes on with random addresses, which is a weaker test and no fault.
    let _ = std::process::Command::new("/proc/self/exe").arg0(name).args(args).exec();
}

/// Ends this process quietly when nobody reads on, as `| head` does.
pub fn end_with_reader() {
    // SAFETY: gives one signal back the effect that it has by default.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Ends this process when the one that started it ends, however that ends.
pub fn die_with_parent() {
    // SAFETY: sets one flag of this process.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

/// Keeps memory once it is there: packs and shards are large enough for the allocator to fetch them from the system
/// and give them back each time, which takes a sixth of a run.
pub fn keep_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets numbers of the allocator, before any other thread runs.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
        libc::mallopt(libc::M_TOP_PAD, 64 << 20);
    }
}

fn enter() -> Option<State> {
    let state = STATE.try_with(Cell::get).ok()?;
    (state.on && !state.busy).then_some(state)
}

/// A system call without libc, since libc's own entry is interposed below.
///
/// # Safety
/// As the system call itself.
#[cfg(target_arch = "x86_64")]
unsafe fn raw(number: i64, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> i64 {
    let result: i64;
    // SAFETY: the registers are those of the x86-64 Linux system call convention; the caller vouches for the rest.
    unsafe {
        std::arch::asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c,
            in("r10") d, in("r8") e, in("r9") f, lateout("rcx") _, lateout("r11") _, options(nostack));
        if (-4095..0).contains(&result) {
            *libc::__errno_location() = -result as i32;
            return -1;
        }
    }
    result
}

/// # Safety
/// As libc's `getrandom`.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn getrandom(buffer: *mut u8, len: usize, flags: u32) -> isize {
    let Some(mut state) = enter() else {
        // SAFETY: passed through unchanged.
        return unsafe { raw(libc::SYS_getrandom, buffer as usize, len, flags as usize, 0, 0, 0) as isize };
    };
    if buffer.is_null() || len == 0 {
        return 0;
    }
    // SAFETY: the caller gave a buffer of this length.
    let out = unsafe { std::slice::from_raw_parts_mut(buffer, len) };
    for chunk in out.chunks_mut(8) {
        state.seed = state.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let value = farshore_core::host::task::splitmix(state.seed, 1).to_le_bytes();
        chunk.copy_from_slice(&value[..chunk.len()]);
    }
    state.randoms += 1;
    STATE.set(state);
    len as isize
}

/// # Safety
/// As libc's `getentropy`.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn getentropy(buffer: *mut u8, len: usize) -> i32 {
    // SAFETY: passed through unchanged.
    if len > 256 || unsafe { getrandom(buffer, len, 0) } < 0 { -1 } else { 0 }
}

/// # Safety
/// As libc's `clock_gettime`.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn clock_gettime(id: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    let Some(mut state) = enter() else {
        // SAFETY: passed through unchanged.
        return unsafe {
            raw(libc::SYS_clock_gettime, id as usize, time as usize, 0, 0, 0, 0) as libc::c_int
        };
    };
    state.clocks += 1;
    STATE.set(state);
    let seconds = match id {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => (farshore_sim::clock::EPOCH_MS / 1_000) as i64,
        _ => 1_000_000,
    };
    // SAFETY: the caller gave a place for the result.
    unsafe { time.write(libc::timespec { tv_sec: seconds, tv_nsec: 0 }) };
    0
}

/// ring and others call `syscall(SYS_getrandom, ...)`.
///
/// # Safety
/// As libc's `syscall`.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn syscall(
    number: i64,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> i64 {
    if number == libc::SYS_getrandom && enter().is_some() {
        // SAFETY: the arguments are getrandom's.
        return unsafe { getrandom(a as *mut u8, b, c as u32) as i64 };
    }
    // SAFETY: passed through unchanged.
    unsafe { raw(number, a, b, c, d, e, f) }
}
