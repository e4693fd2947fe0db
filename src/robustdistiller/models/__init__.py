"""Wave → features: the teacher, the student and its heads."""
