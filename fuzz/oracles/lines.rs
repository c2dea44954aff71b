//! The splitter into lines that workers' output goes through.

use liveswap::wire::lines::Lines;

/// Reads the first byte as the limit, the second as the size of the chunks, and the rest as a stream.
///
/// # Panics
///
/// Where a byte is lost, a piece too long, a character torn, or the result is another for chunks of another size.
pub fn check(bytes: &[u8]) {
    let [limit, size, stream @ ..] = bytes else { return };
    let (limit, size) = (usize::from(*limit).max(4), usize::from(*size).max(1));
    let pieces = split(limit, stream.chunks(size));
    assert_eq!(pieces, split(limit, [stream].into_iter()), "chunks of {size} make another result");
    let mut joined = Vec::new();
    for (piece, ended) in &pieces {
        assert!(piece.len() <= limit && !piece.contains(&b'\n'));
        joined.extend_from_slice(piece);
        joined.extend(ended.then_some(b'\n'));
    }
    assert_eq!(joined, stream);
    if let Ok(text) = str::from_utf8(stream) {
        let torn = pieces.iter().any(|(piece, _)| str::from_utf8(piece).is_err());
        assert!(!torn, "a character of {text:?} is torn");
    }
}

fn split<'a>(limit: usize, chunks: impl Iterator<Item = &'a [u8]>) -> Vec<(Vec<u8>, bool)> {
    let mut lines = Lines::new(limit);
    let mut pieces = Vec::new();
    for chunk in chunks {
        lines.push(chunk);
        while let Some(line) = lines.next_line() {
            pieces.push((line.bytes.to_vec(), line.ended));
        }
    }
    pieces.extend(lines.finish().map(|line| (line.bytes.to_vec(), line.ended)));
    pieces
}
