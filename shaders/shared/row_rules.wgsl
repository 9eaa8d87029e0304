// Row rules: how the scores of a row are processed, and when the row ends. Imported by ops/process_logits, ops/log_softmax
// and ops/advance (kernels/ops/row_rules.rs writes them). Rows of one batch may follow different rules.
//
//   rules  u32 [rows, rules_stride]; a row holds these words, then its end tokens, then its suppressed tokens
const RULE_IS_NORMALISED: u32 = 0u; // 1: scores become log-probabilities before they are processed (beams)
const RULE_PENALTY: u32 = 1u;       // repetition penalty, f32 bits; 1 is off
const RULE_NGRAM: u32 = 2u;         // length of the runs that may not repeat; 0 is off
const RULE_MIN_NEW: u32 = 3u;       // end tokens are masked below this many new tokens
const RULE_MAX_NEW: u32 = 4u;       // a row of this many new tokens ends
const RULE_ENDS: u32 = 5u;          // number of end tokens
const RULE_SUPPRESSED: u32 = 6u;    // number of tokens that are always masked
const RULE_LISTS: u32 = 8u;         // where the end tokens begin
