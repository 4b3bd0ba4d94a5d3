//! The inner loops of the code: out[r] = Σ coefficient[r][c] · input[c] over GF(2^8), polynomial 0x11D.
//!
//! The widest instruction set of the running processor is chosen at run time, so that one binary runs everywhere.
//! Every path gives the same bytes; the scalar one is the public crate's own and serves any processor. The only file
//! of the workspace with `unsafe`: vector loads and stores.
#![allow(unsafe_code)]

use reed_solomon_erasure::galois_8;
use std::ops::Range;
use std::sync::OnceLock;

/// Bytes of each shard that are worked on together, so that inputs are still in the second-level cache when the next
/// rows of output need them.
const COLUMN_BYTES: usize = 64 << 10;
/// Rows of output made in one pass over the inputs; more would not fit the vector registers.
const ROWS_PER_PASS: usize = 4;

/// A way to do the arithmetic, best first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Path {
    /// 64 bytes at a time, one instruction a product.
    Avx512Gfni,
    /// 32 bytes at a time, one instruction a product.
    Avx2Gfni,
    /// 32 bytes at a time, two table look-ups a product.
    Avx2,
    /// 16 bytes at a time, two table look-ups a product.
    Ssse3,
    /// One byte at a time, by the public crate.
    Scalar,
}

impl Path {
    const ALL: [Path; 5] = [Path::Avx512Gfni, Path::Avx2Gfni, Path::Avx2, Path::Ssse3, Path::Scalar];

    /// The fastest path of this processor.
    pub fn best() -> Path {
        static BEST: OnceLock<Path> = OnceLock::new();
        *BEST.get_or_init(|| Path::ALL.into_iter().find(|p| p.works_here()).unwrap_or(Path::Scalar))
    }

    /// Whether this processor has the instructions.
    #[cfg(target_arch = "x86_64")]
    pub fn works_here(self) -> bool {
        match self {
            Path::Avx512Gfni => {
                is_x86_feature_detected!("gfni")
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
            }
            Path::Avx2Gfni => is_x86_feature_detected!("gfni") && is_x86_feature_detected!("avx2"),
            Path::Avx2 => is_x86_feature_detected!("avx2"),
            Path::Ssse3 => is_x86_feature_detected!("ssse3"),
            Path::Scalar => true,
        }
    }

    /// Whether this processor has the instructions.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn works_here(self) -> bool {
        self == Path::Scalar
    }
}

/// Coefficients, with the tables each path derives from them.
#[derive(Clone, Debug)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    coefficients: Vec<u8>,
    /// Per coefficient: multiplication as an 8×8 bit matrix, in the operand order of GF2P8AFFINEQB.
    affine: Vec<u64>,
    /// Per coefficient: products with the 16 low and the 16 high nibbles, for byte shuffles.
    nibbles: Vec<[u8; 32]>,
}

impl Matrix {
    /// Takes `rows` rows of `cols` coefficients.
    pub fn new(rows: usize, cols: usize, coefficients: Vec<u8>) -> Self {
        assert_eq!(coefficients.len(), rows * cols, "a matrix has rows times columns of coefficients");
        let affine = coefficients.iter().map(|c| bit_matrix(*c)).collect();
        let nibbles = coefficients.iter().map(|c| nibble_products(*c)).collect();
        Matrix { rows, cols, coefficients, affine, nibbles }
    }
    /// Rows of coefficients, which is outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// One row.
    pub fn row(&self, row: usize) -> &[u8] {
        &self.coefficients[row * self.cols..][..self.cols]
    }
}

/// Row 7 − i of the matrix says which bits of x make bit i of c·x.
fn bit_matrix(c: u8) -> u64 {
    let mut rows = [0u8; 8];
    for (i, row) in rows.iter_mut().rev().enumerate() {
        *row = (0..8).fold(0, |row, j| row | (galois_8::mul(c, 1 << j) >> i & 1) << j);
    }
    u64::from_le_bytes(rows)
}

fn nibble_products(c: u8) -> [u8; 32] {
    std::array::from_fn(|i| galois_8::mul(c, if i < 16 { i as u8 } else { (i as u8 - 16) << 4 }))
}

/// Writes the products of `matrix` and `input` to `out`, or adds them to what is there.
///
/// # Panics
/// If the number of inputs or outputs is not the matrix's, or they differ in length: callers have checked.
pub fn combine(path: Path, matrix: &Matrix, input: &[&[u8]], out: &mut [&mut [u8]], add: bool) {
    assert_eq!((input.len(), out.len()), (matrix.cols, matrix.rows), "one input a column, one output a row");
    assert!(path.works_here(), "this processor lacks the instructions of {path:?}");
    let len = out.first().map_or(0, |o| o.len());
    assert!(
        input.iter().all(|i| i.len() == len) && out.iter().all(|o| o.len() == len),
        "shards are equally long"
    );
    let mut from = 0;
    while from < len {
        let to = len.min(from + COLUMN_BYTES);
        let mut first = 0;
        while first < matrix.rows {
            let rows = ROWS_PER_PASS.min(matrix.rows - first);
            let pass = Pass { matrix, first, input, add };
            let out = &mut out[first..first + rows];
            let done = vectors(path, &pass, out, from..to);
            scalar(&pass, out, done..to);
            first += rows;
        }
        from = to;
    }
}

/// A few rows of one column.
struct Pass<'a> {
    matrix: &'a Matrix,
    first: usize,
    input: &'a [&'a [u8]],
    add: bool,
}

fn scalar(pass: &Pass, out: &mut [&mut [u8]], span: Range<usize>) {
    for (row, out) in out.iter_mut().enumerate() {
        let out = &mut out[span.clone()];
        if !pass.add {
            out.fill(0);
        }
        for (coefficient, input) in pass.matrix.row(pass.first + row).iter().zip(pass.input) {
            galois_8::mul_slice_xor(*coefficient, &input[span.clone()], out);
        }
    }
}

/// Does as much of the span as whole vectors allow and returns where it stopped.
#[cfg(not(target_arch = "x86_64"))]
fn vectors(_: Path, _: &Pass, _: &mut [&mut [u8]], span: Range<usize>) -> usize {
    span.start
}

#[cfg(target_arch = "x86_64")]
fn vectors(path: Path, pass: &Pass, out: &mut [&mut [u8]], span: Range<usize>) -> usize {
    macro_rules! by_rows {
        ($kernel:ident) => {
            // SAFETY: `combine` has asserted that the processor has the kernel's instructions, that every input and
            // output is at least `span.end` bytes long and that there are `matrix.cols` inputs; rows
            // `first .. first + out.len()` exist because `combine` cuts them from the matrix's own count.
            unsafe {
                match out.len() {
                    1 => x86::$kernel::<1>(pass, out, span),
                    2 => x86::$kernel::<2>(pass, out, span),
                    3 => x86::$kernel::<3>(pass, out, span),
                    _ => x86::$kernel::<4>(pass, out, span),
                }
            }
        };
    }
    match path {
        Path::Avx512Gfni => by_rows!(affine_512),
        Path::Avx2Gfni => by_rows!(affine_256),
        Path::Avx2 => by_rows!(shuffle_256),
        Path::Ssse3 => by_rows!(shuffle_128),
        Path::Scalar => span.start,
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Pass;
    use core::arch::x86_64::*;
    use std::ops::Range;

    /// Two vectors at a time; each product is one affine transformation of eight-bit elements.
    macro_rules! affine_kernel {
        ($name:ident, $features:literal, $bytes:literal, $zero:ident, $load:ident, $store:ident, $xor:ident,
         $splat:ident, $affine:ident) => {
            /// # Safety
            /// The processor has the features; inputs and `R` outputs reach to `span.end`; rows `first..first + R`
            /// and one input per column exist.
            #[target_feature(enable = $features)]
            pub unsafe fn $name<const R: usize>(
                pass: &Pass,
                out: &mut [&mut [u8]],
                span: Range<usize>,
            ) -> usize {
                const STEP: usize = 2 * $bytes;
                let cols = pass.matrix.cols;
                let mut at = span.start;
                while at + STEP <= span.end {
                    let mut sum = [[$zero(); 2]; R];
                    if pass.add {
                        for r in 0..R {
                            // SAFETY: both loads end at `at + STEP`, within the output.
                            let from = unsafe { out[r].as_ptr().add(at) };
                            sum[r] = unsafe { [$load(from.cast()), $load(from.add($bytes).cast())] };
                        }
                    }
                    for c in 0..cols {
                        // SAFETY: both loads end at `at + STEP`, within the input; `c` is a column.
                        let from = unsafe { pass.input.get_unchecked(c).as_ptr().add(at) };
                        let x = unsafe { [$load(from.cast()), $load(from.add($bytes).cast())] };
                        for r in 0..R {
                            // SAFETY: row `first + r` exists.
                            let bits =
                                unsafe { *pass.matrix.affine.get_unchecked((pass.first + r) * cols + c) };
                            let by = $splat(bits as i64);
                            sum[r][0] = $xor(sum[r][0], $affine::<0>(x[0], by));
                            sum[r][1] = $xor(sum[r][1], $affine::<0>(x[1], by));
                        }
                    }
                    for r in 0..R {
                        // SAFETY: both stores end at `at + STEP`, within the output, which is ours alone.
                        unsafe {
                            let to = out[r].as_mut_ptr().add(at);
                            $store(to.cast(), sum[r][0]);
                            $store(to.add($bytes).cast(), sum[r][1]);
                        }
                    }
                    at += STEP;
                }
                at
            }
        };
    }

    /// One vector at a time; each product is a look-up of the low nibble and one of the high nibble.
    macro_rules! shuffle_kernel {
        ($name:ident, $features:literal, $bytes:literal, $zero:ident, $load:ident, $store:ident, $xor:ident,
         $and:ident, $shift:ident, $mask:ident, $shuffle:ident, $table:expr) => {
            /// # Safety
            /// As for the affine kernels.
            #[target_feature(enable = $features)]
            pub unsafe fn $name<const R: usize>(
                pass: &Pass,
                out: &mut [&mut [u8]],
                span: Range<usize>,
            ) -> usize {
                const STEP: usize = 2 * $bytes;
                let cols = pass.matrix.cols;
                let mask = $mask(15);
                let mut at = span.start;
                while at + STEP <= span.end {
                    let mut sum = [[$zero(); 2]; R];
                    if pass.add {
                        for r in 0..R {
                            // SAFETY: both loads end at `at + STEP`, within the output.
                            let from = unsafe { out[r].as_ptr().add(at) };
                            sum[r] = unsafe { [$load(from.cast()), $load(from.add($bytes).cast())] };
                        }
                    }
                    for c in 0..cols {
                        // SAFETY: both loads end at `at + STEP`, within the input; `c` is a column.
                        let from = unsafe { pass.input.get_unchecked(c).as_ptr().add(at) };
                        let x = unsafe { [$load(from.cast()), $load(from.add($bytes).cast())] };
                        let low = [$and(x[0], mask), $and(x[1], mask)];
                        let high = [$and($shift::<4>(x[0]), mask), $and($shift::<4>(x[1]), mask)];
                        for r in 0..R {
                            // SAFETY: row `first + r` exists, and its table is 32 bytes long.
                            let (tl, th) = unsafe {
                                let table = pass.matrix.nibbles.get_unchecked((pass.first + r) * cols + c);
                                let load = $table;
                                (load(table.as_ptr()), load(table.as_ptr().add(16)))
                            };
                            for u in 0..2 {
                                let product = $xor($shuffle(tl, low[u]), $shuffle(th, high[u]));
                                sum[r][u] = $xor(sum[r][u], product);
                            }
                        }
                    }
                    for r in 0..R {
                        // SAFETY: both stores end at `at + STEP`, within the output, which is ours alone.
                        unsafe {
                            let to = out[r].as_mut_ptr().add(at);
                            $store(to.cast(), sum[r][0]);
                            $store(to.add($bytes).cast(), sum[r][1]);
                        }
                    }
                    at += STEP;
                }
                at
            }
        };
    }

    affine_kernel!(
        affine_512,
        "gfni,avx512f,avx512bw",
        64,
        _mm512_setzero_si512,
        _mm512_loadu_si512,
        _mm512_storeu_si512,
        _mm512_xor_si512,
        _mm512_set1_epi64,
        _mm512_gf2p8affine_epi64_epi8
    );
    affine_kernel!(
        affine_256,
        "gfni,avx2",
        32,
        _mm256_setzero_si256,
        _mm256_loadu_si256,
        _mm256_storeu_si256,
        _mm256_xor_si256,
        _mm256_set1_epi64x,
        _mm256_gf2p8affine_epi64_epi8
    );
    shuffle_kernel!(
        shuffle_256,
        "avx2",
        32,
        _mm256_setzero_si256,
        _mm256_loadu_si256,
        _mm256_storeu_si256,
        _mm256_xor_si256,
        _mm256_and_si256,
        _mm256_srli_epi64,
        _mm256_set1_epi8,
        _mm256_shuffle_epi8,
        |table: *const u8| _mm256_broadcastsi128_si256(_mm_loadu_si128(table.cast()))
    );
    shuffle_kernel!(
        shuffle_128,
        "ssse3",
        16,
        _mm_setzero_si128,
        _mm_loadu_si128,
        _mm_storeu_si128,
        _mm_xor_si128,
        _mm_and_si128,
        _mm_srli_epi64,
        _mm_set1_epi8,
        _mm_shuffle_epi8,
        |table: *const u8| _mm_loadu_si128(table.cast())
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(len: usize, seed: u64) -> Vec<u8> {
        (0..len as u64)
            .map(|i| (crate::host::task::splitmix(seed, i.wrapping_mul(0x9e37_79b9_7f4a_7c15)) >> 32) as u8)
            .collect()
    }

    /// The definition, one byte at a time.
    fn by_definition(matrix: &Matrix, input: &[Vec<u8>], before: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut out = before.to_vec();
        for (r, out) in out.iter_mut().enumerate() {
            for (c, input) in input.iter().enumerate() {
                for (o, i) in out.iter_mut().zip(input) {
                    *o ^= galois_8::mul(matrix.row(r)[c], *i);
                }
            }
        }
        out
    }

    fn run(path: Path, matrix: &Matrix, input: &[Vec<u8>], before: &[Vec<u8>], add: bool) -> Vec<Vec<u8>> {
        let mut out = before.to_vec();
        let input: Vec<&[u8]> = input.iter().map(|i| &i[..]).collect();
        let mut rows: Vec<&mut [u8]> = out.iter_mut().map(|o| &mut o[..]).collect();
        combine(path, matrix, &input, &mut rows, add);
        out
    }

    #[test]
    fn every_product_on_every_path() {
        let all: Vec<u8> = (0..=255).collect();
        for path in Path::ALL.into_iter().filter(|p| p.works_here()) {
            for c in 0..=255u8 {
                let matrix = Matrix::new(1, 1, vec![c]);
                let out = run(path, &matrix, std::slice::from_ref(&all), &[vec![0xaa; 256]], false);
                let expected: Vec<u8> = all.iter().map(|x| galois_8::mul(c, *x)).collect();
                assert_eq!(out[0], expected, "{path:?} times {c}");
            }
        }
    }

    #[test]
    fn columns_and_tails_meet() {
        let len = 2 * COLUMN_BYTES + 333;
        let input: Vec<_> = (0..3).map(|i| noise(len, i)).collect();
        let matrix = Matrix::new(5, 3, noise(15, 99));
        let before = vec![vec![0u8; len]; 5];
        let expected = by_definition(&matrix, &input, &before);
        for path in Path::ALL.into_iter().filter(|p| p.works_here()) {
            assert!(run(path, &matrix, &input, &before, false) == expected, "{path:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn every_path_agrees_with_the_definition(
            rows in 1usize..10, cols in 1usize..12, len in 0usize..700, add: bool, seed: u64
        ) {
            let matrix = Matrix::new(rows, cols, noise(rows * cols, seed));
            let input: Vec<_> = (0..cols as u64).map(|c| noise(len, seed ^ (c + 1))).collect();
            let before: Vec<_> = (0..rows as u64).map(|r| noise(len, seed ^ (r + 100))).collect();
            let base = if add { before.clone() } else { vec![vec![0; len]; rows] };
            let expected = by_definition(&matrix, &input, &base);
            for path in Path::ALL.into_iter().filter(|p| p.works_here()) {
                prop_assert_eq!(&run(path, &matrix, &input, &before, add), &expected, "{:?}", path);
            }
        }
    }
}
