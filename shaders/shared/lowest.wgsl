// lowest: the lowest finite f32, -3.4028235e38 as other programs write it: what a masked score counts as.

// These digits: the shorter ones stand for a number beyond f32's range, if one that rounds into it, and Tint refuses them.
const LOWEST: f32 = -3.40282346e38;
