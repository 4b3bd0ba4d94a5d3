//! What the allocator of the system has to be told once. Called by `main` before it starts a thread.

/// Heaps that glibc may divide threads over. By default it makes up to eight a processor, and each keeps what its
/// threads freed: buffers of megabytes wander from thread to thread here, so every heap grows to the peak of all.
/// Two take half the memory or less and cost no time that can be measured (docs/performance.md).
#[cfg(target_env = "gnu")]
const HEAPS_MAX: i32 = 2;

/// Keeps a client small. Nodes are left alone: they have many more threads that allocate at once.
pub fn keep_small() {
    #[cfg(target_env = "gnu")]
    {
        #[expect(unsafe_code, reason = "the standard library has no safe way to say this")]
        // SAFETY: the call sets one number inside the allocator, and no other thread exists yet.
        let done = unsafe { libc::mallopt(libc::M_ARENA_MAX, HEAPS_MAX) };
        // If the allocator does not know this number, all that follows is more memory.
        let _ = done;
    }
}
