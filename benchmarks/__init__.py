"""What a balanced gradient costs, beside a plain one and beside other libraries."""
