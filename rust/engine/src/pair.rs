//! SHA-256 of two bodies at a time.
//!
//! Within one message the processor's SHA instructions wait for each other's results. Two messages side by side fill each other's gaps: both take
//! hardly longer than one. So a whole body waits until everything else that is ready has run; if another comes by then, they are hashed together.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use crate::sync::lock;

/// Shorter ones are hashed sooner than a partner comes.
const WORTH_WAITING: usize = 1 << 10;

/// The body that waits for another.
#[derive(Default)]
pub struct Pairs {
    waiting: Mutex<Option<Waiting>>,
    next: AtomicU64,
}

struct Waiting {
    number: u64,
    body: Bytes,
    digest: oneshot::Sender<[u8; 32]>,
}

impl Pairs {
    /// The body's SHA-256.
    pub async fn sha256(&self, body: Bytes) -> [u8; 32] {
        if body.len() < WORTH_WAITING || !works_here() {
            return alone(&body);
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, digest) = oneshot::channel();
        let other = {
            let mut waiting = lock(&self.waiting);
            let other = waiting.take();
            if other.is_none() {
                *waiting = Some(Waiting { number, body: body.clone(), digest: sender });
            }
            other
        };
        if let Some(other) = other {
            let [mine, others] = both([&body, &other.body]);
            // It may have been cancelled meanwhile.
            let _ = other.digest.send(others);
            return mine;
        }
        tokio::task::yield_now().await;
        let nobody_came = lock(&self.waiting).take_if(|waiting| waiting.number == number).is_some();
        if nobody_came {
            return alone(&body);
        }
        digest.await.unwrap_or_else(|_| alone(&body))
    }
}

fn alone(body: &[u8]) -> [u8; 32] {
    Sha256::digest(body).into()
}

#[cfg(not(target_arch = "x86_64"))]
fn works_here() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn both(bodies: [&[u8]; 2]) -> [[u8; 32]; 2] {
    bodies.map(alone)
}

#[cfg(target_arch = "x86_64")]
use x86::{both, works_here};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_loadu_si128, _mm_set_epi32, _mm_set_epi64x, _mm_sha256msg1_epu32,
        _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi8, _mm_shuffle_epi32, _mm_storeu_si128,
    };

    use sha2::block_api::compress256;

    /// FIPS 180-4, 5.3.3.
    const START: [u32; 8] = [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];
    /// FIPS 180-4, 4.2.2, in fours.
    const K: [[u32; 4]; 16] = [
        [0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5],
        [0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5],
        [0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3],
        [0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174],
        [0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc],
        [0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da],
        [0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7],
        [0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967],
        [0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13],
        [0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85],
        [0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3],
        [0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070],
        [0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5],
        [0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3],
        [0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208],
        [0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2],
    ];
    const BLOCK: usize = 64;

    /// Whether this processor has what [`both`] needs.
    pub fn works_here() -> bool {
        is_x86_feature_detected!("sha") && is_x86_feature_detected!("sse4.1") && is_x86_feature_detected!("ssse3")
    }

    /// The digests of both. Only where it [`works_here`].
    pub fn both(bodies: [&[u8]; 2]) -> [[u8; 32]; 2] {
        let [(a, _), (b, _)] = bodies.map(|body| body.as_chunks::<BLOCK>());
        let shared = a.len().min(b.len());
        let mut states = [START; 2];
        if works_here() {
            // SAFETY: the processor has these instructions.
            unsafe { compress(&mut states, [&a[..shared], &b[..shared]]) };
        } else {
            states.iter_mut().zip([a, b]).for_each(|(state, blocks)| compress256(state, &blocks[..shared]));
        }
        let [first, second] = states;
        [finish(first, bodies[0], shared), finish(second, bodies[1], shared)]
    }

    /// The digest of `body`, of which `state` holds so many blocks.
    fn finish(mut state: [u32; 8], body: &[u8], blocks: usize) -> [u8; 32] {
        let (whole, rest) = body[blocks * BLOCK..].as_chunks::<BLOCK>();
        compress256(&mut state, whole);
        let mut last = [[0; BLOCK]; 2];
        last[0][..rest.len()].copy_from_slice(rest);
        last[0][rest.len()] = 0x80;
        let used = if rest.len() < BLOCK - 8 { 1 } else { 2 };
        last[used - 1][BLOCK - 8..].copy_from_slice(&(body.len() as u64 * 8).to_be_bytes());
        compress256(&mut state, &last[..used]);
        let mut digest = [0; 32];
        for (bytes, word) in digest.as_chunks_mut::<4>().0.iter_mut().zip(state) {
            *bytes = word.to_be_bytes();
        }
        digest
    }

    /// Both states after both messages' blocks, of which there are equally many.
    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    fn compress(states: &mut [[u32; 8]; 2], blocks: [&[[u8; BLOCK]]; 2]) {
        // The instructions want the words in this order.
        let mut abef = states.map(|[a, b, _, _, e, f, _, _]| words([f, e, b, a]));
        let mut cdgh = states.map(|[_, _, c, d, _, _, g, h]| words([h, g, d, c]));
        for pair in blocks[0].iter().zip(blocks[1]) {
            let pair = [pair.0, pair.1];
            let before = (abef, cdgh);
            let mut schedule = [load(pair[0]), load(pair[1])];
            macro_rules! rounds {
                ($($four:literal)*) => {$(
                    let k = words(K[$four]);
                    for each in [0, 1] {
                        let w = &mut schedule[each];
                        if $four >= 4 {
                            let [zero, one, two, three] = [w[$four % 4], w[($four + 1) % 4], w[($four + 2) % 4], w[($four + 3) % 4]];
                            let sum = _mm_add_epi32(_mm_sha256msg1_epu32(zero, one), _mm_alignr_epi8::<4>(three, two));
                            w[$four % 4] = _mm_sha256msg2_epu32(sum, three);
                        }
                        let wk = _mm_add_epi32(w[$four % 4], k);
                        cdgh[each] = _mm_sha256rnds2_epu32(cdgh[each], abef[each], wk);
                        abef[each] = _mm_sha256rnds2_epu32(abef[each], cdgh[each], _mm_shuffle_epi32::<0x0e>(wk));
                    }
                )*};
            }
            rounds!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
            for each in [0, 1] {
                abef[each] = _mm_add_epi32(abef[each], before.0[each]);
                cdgh[each] = _mm_add_epi32(cdgh[each], before.1[each]);
            }
        }
        for each in [0, 1] {
            let [f, e, b, a] = numbers(abef[each]);
            let [h, g, d, c] = numbers(cdgh[each]);
            states[each] = [a, b, c, d, e, f, g, h];
        }
    }

    #[target_feature(enable = "sse2")]
    fn words([a, b, c, d]: [u32; 4]) -> __m128i {
        _mm_set_epi32(d as i32, c as i32, b as i32, a as i32)
    }

    #[target_feature(enable = "sse2")]
    fn numbers(vector: __m128i) -> [u32; 4] {
        let mut numbers = [0; 4];
        // SAFETY: it has room for one vector.
        unsafe { _mm_storeu_si128(numbers.as_mut_ptr().cast(), vector) };
        numbers
    }

    /// A block's words; their bytes come the other way round.
    #[target_feature(enable = "sse2,ssse3")]
    fn load(block: &[u8; BLOCK]) -> [__m128i; 4] {
        let turn = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
        let at = |offset: usize| {
            // SAFETY: a block has four vectors.
            let vector = unsafe { _mm_loadu_si128(block[offset..offset + 16].as_ptr().cast()) };
            _mm_shuffle_epi8(vector, turn)
        };
        [at(0), at(16), at(32), at(48)]
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn body(seed: u64, len: usize) -> Bytes {
        let mut random = fastrand::Rng::with_seed(seed);
        (0..len).map(|_| random.u8(..)).collect()
    }

    #[test]
    fn two_at_once_are_what_each_is_alone() {
        let edges = [0, 1, 55, 56, 57, 63, 64, 65, 119, 120, 127, 128, 129, 1000, 10_240, 65_536];
        for a in edges {
            for b in edges {
                let bodies = [body(a as u64, a), body(b as u64 + 99, b)];
                assert_eq!(both([&bodies[0], &bodies[1]]), [alone(&bodies[0]), alone(&bodies[1])], "{a} and {b}");
            }
        }
        for seed in 0..2000 {
            let bodies = [body(seed, fastrand::usize(..3000)), body(seed + 7777, fastrand::usize(..3000))];
            assert_eq!(both([&bodies[0], &bodies[1]]), [alone(&bodies[0]), alone(&bodies[1])], "seed {seed}");
        }
    }

    #[tokio::test]
    async fn one_that_finds_no_partner_goes_alone() {
        let pairs = Pairs::default();
        for len in [0, WORTH_WAITING, 9000] {
            assert_eq!(pairs.sha256(body(1, len)).await, alone(&body(1, len)));
        }
        assert!(lock(&pairs.waiting).is_none());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn everybody_gets_their_own_whoever_comes_and_goes() {
        let pairs = Arc::new(Pairs::default());
        let tasks: Vec<_> = (0..2000)
            .map(|seed| {
                let pairs = pairs.clone();
                tokio::spawn(async move {
                    let body = body(seed, WORTH_WAITING + seed as usize % 500);
                    (pairs.sha256(body.clone()).await, alone(&body))
                })
            })
            .collect();
        // Some are given up while they wait, or before.
        tasks.iter().step_by(7).for_each(tokio::task::JoinHandle::abort);
        for task in tasks {
            if let Ok((digest, expected)) = task.await {
                assert_eq!(digest, expected);
            }
        }
    }

    #[tokio::test]
    async fn who_waits_is_hashed_with_the_next_even_when_it_has_left() {
        if !works_here() {
            return;
        }
        let pairs = Pairs::default();
        let mut first = Box::pin(pairs.sha256(body(1, 5000)));
        assert!(futures_util::poll!(&mut first).is_pending());
        assert!(lock(&pairs.waiting).is_some());
        assert_eq!(pairs.sha256(body(2, 6000)).await, alone(&body(2, 6000)));
        assert!(lock(&pairs.waiting).is_none());
        assert_eq!(first.await, alone(&body(1, 5000)));
        let mut gone = Box::pin(pairs.sha256(body(3, 5000)));
        assert!(futures_util::poll!(&mut gone).is_pending());
        drop(gone);
        assert_eq!(pairs.sha256(body(4, 6000)).await, alone(&body(4, 6000)));
    }
}
