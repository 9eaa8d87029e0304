// Row rules: how the scores of a row are processed, and when the row ends. Imported by ops/process_logits, ops/log_softmax
// and ops/advance (kernels/ops/row_rules.rs writes them). Rows of one batch may follow different rules.
//
//   rules  u32 [rows, rules_stride]; a row holds these words, then the lists: end tokens, suppressed, suppressed at the
//          beginning, forced first, forced last. Then come the runs, the biased ones first: a length, a bias (f32 bits), tokens
const RULE_IS_NORMALISED: u32 = 0u;     // 1: scores become log-probabilities before they are processed (beams)
const RULE_PENALTY: u32 = 1u;           // repetition penalty, f32 bits; 1 is off
const RULE_NGRAM: u32 = 2u;             // length of the runs that may not repeat; 0 is off
const RULE_MIN_NEW: u32 = 3u;           // end tokens are masked below this many new tokens
const RULE_MAX_NEW: u32 = 4u;           // a row of this many new tokens ends
const RULE_ENDS: u32 = 5u;              // number of end tokens
const RULE_SUPPRESSED: u32 = 6u;        // number of tokens that are always masked
const RULE_BEGIN_SUPPRESSED: u32 = 7u;  // number of tokens that are masked at the beginning
const RULE_FORCED_FIRST: u32 = 8u;      // number of tokens of which the first is one; 0 is any
const RULE_FORCED_LAST: u32 = 9u;       // number of tokens of which the last is one; 0 is any
const RULE_BEGIN: u32 = 10u;            // new tokens at the beginning: 1 where the first is forced
const RULE_BIASED_RUNS: u32 = 11u;      // number of runs with a bias
const RULE_BAD_RUNS: u32 = 12u;         // number of runs that are never completed
const RULE_LISTS: u32 = 14u;            // where the end tokens begin
