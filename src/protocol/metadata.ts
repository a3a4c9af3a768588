/**
 * The key of a checkpoint's metadata that holds the name of the graph it is of, where the saver was
 * given one. It is no column of its own because the tables are LangGraph's: in the metadata it is
 * copied, exported and found by filters with the rest. LangGraph's own words for it (`graph_id`,
 * `assistant_id`) are the platform's, and in what a user may have put there.
 */
export const graphKey = "checkpointd_graph";
