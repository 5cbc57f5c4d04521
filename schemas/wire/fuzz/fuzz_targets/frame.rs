//! Any bytes as a frame, and any bytes as a batch: they are refused, or everything in them can be read.
#![no_main]

use std::hint::black_box;

use libfuzzer_sys::fuzz_target;
use tapio_schemas::{
    batch::{AlignedVec, BatchView},
    ids::FrameId,
};
use tapio_wire::frame::{FrameDecoder, FrameLimits};

fn read(view: &BatchView<'_>) {
    let mut words = Vec::new();
    for column in view.columns() {
        view.copy_rows(column.spec().id, &mut words);
        for (row, word) in view.iter().zip(&words) {
            assert_eq!(row.unsigned(column.spec().id), *word);
            black_box((row.text(column.spec().id), row.sixteen(column.spec().id)));
        }
    }
    for row in 0..view.rows().min(64) {
        black_box(view.event(row, FrameId::default()));
    }
    black_box(view.ledger());
}

fuzz_target!(|bytes: &[u8]| {
    let limits = FrameLimits { payload_bytes_max: 1 << 20, batch_bytes_max: 1 << 20 };
    if let Ok(mut decoder) = FrameDecoder::new(limits)
        && let Ok((_header, view)) = decoder.decode(bytes, None)
    {
        read(&view);
    }
    let mut aligned = AlignedVec::<16>::new();
    aligned.extend_from_slice(bytes);
    if let Ok(view) = BatchView::open(&aligned) {
        read(&view);
    }
});
